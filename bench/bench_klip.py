"""The klip step on many references, beside jwst's klip function in the same process.

    python bench/bench_klip.py [--references 450] [--integrations 10] [--truncate 50] [--out FILE]

jwst computes the same basis for every integration; one integration of it is timed and multiplied.
"""

from common import arguments, finish, limit_threads, timed


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--references", type=int, default=450)
    parser.add_argument("--integrations", type=int, default=10)
    parser.add_argument("--truncate", type=int, default=50)
    parser.add_argument("--no-jwst", action="store_true")
    options = parser.parse_args()
    limit_threads(options.threads)
    import numpy as np

    from gpucoron.backend.threads import limited_to
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.steps import klip

    rng = np.random.default_rng(0)
    n, nref, shape = options.integrations, options.references, (options.size, options.size)
    modes = rng.normal(size=(80, *shape)).cumsum(axis=1).cumsum(axis=2) / 100
    references = np.tensordot(rng.normal(size=(nref, 80)), modes, 1).astype(np.float32)
    references += rng.normal(size=references.shape).astype(np.float32)
    science = np.tensordot(rng.normal(size=(n, 80)), modes, 1).astype(np.float32)
    stack = IntegrationStack(science, np.ones_like(science), np.zeros(science.shape, np.uint32))
    with limited_to(options.threads):
        found = klip(stack, references, options.truncate)
        ours = timed(lambda: klip(stack, references, options.truncate), options.repeats)
    results = {
        "size": options.size,
        "references": nref,
        "integrations": n,
        "truncate": options.truncate,
        "threads": options.threads,
        "gpucoron": ours,
    }
    if not options.no_jwst:
        results.update(_peer(science, references, found, options))
        results["ratio"] = results["jwst"]["median_s"] / ours["median_s"]
    finish(results, options.out)


def _peer(science, references, found, options):
    """Time jwst on one integration, and compare the result."""
    import numpy as np
    from jwst.coron.klip import klip as jwst_klip
    from stdatamodels.jwst.datamodels import CubeModel

    models = [CubeModel(data=a, err=np.ones_like(a)) for a in (science[:1].copy(), references)]
    out = []
    one = timed(lambda: out.append(jwst_klip(*models, options.truncate, return_psf=False)), 1)
    difference = found.data[0] - out[0].data[0]
    return {
        "jwst": {k: v * options.integrations for k, v in one.items()},
        "rms_difference_over_rms": float(np.std(difference) / np.std(found.data[0])),
    }


if __name__ == "__main__":
    main()
