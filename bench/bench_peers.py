"""PSF subtraction of the same arrays by pyKLIP, VIP, jwst and gpucoron, in one process.

    python bench/bench_peers.py [--size 320] [--annuli 5] [--out FILE]

Two rolls of a star and references, aligned: PSF subtraction, derotation and combination (jwst:
subtraction alone). What spaceKLIP calls is pyKLIP's function. The PSF library of pyKLIP is made
before the clock starts.
"""

import contextlib
import ctypes
import io
import tempfile

from common import arguments, finish, limit_threads, timed


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--references", type=int, default=36)
    parser.add_argument("--integrations", type=int, default=20)
    parser.add_argument("--numbasis", type=int, default=10)
    parser.add_argument("--annuli", type=int, default=5)
    parser.add_argument("--peer-repeats", type=int, default=1)
    options = parser.parse_args()
    limit_threads(1)  # of the BLAS: pyKLIP's processes and gpucoron's threads share the processors
    import numpy as np
    from pyklip import parallelized, rdi
    from pyklip.instruments.Instrument import GenericData

    from gpucoron.compat import pyklip as ours

    images, angles = _images(options)
    n, middle = options.integrations, (options.size / 2, options.size / 2)
    names = np.array([f"image{k}" for k in range(len(images))])

    def dataset():
        made = GenericData(images[:n], np.tile(middle, (n, 1)), angles, np.ones(n), 0, names[:n])
        library = rdi.PSFLibrary(images, middle, names, correlation_matrix=np.eye(len(images)))
        library.prepare_library(made)
        return made, library

    def run(function, mode, zones):
        made, library = dataset()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            function(
                made,
                mode=mode,
                outputdir=folder,
                fileprefix="x",
                numbasis=[options.numbasis],
                maxnumbasis=len(images),
                psf_library=library,
                movement=1,
                numthreads=options.threads,
                dtype=ctypes.c_double,
                verbose=False,
                **zones,
            )
        return made.output

    results = {name: getattr(options, name) for name in ("size", "references", "integrations")}
    results |= {"numbasis": options.numbasis, "annuli": options.annuli, "threads": options.threads}
    works = {
        "RDI": ("RDI", {"annuli": 1, "subsections": 1}),
        "ADI+RDI, zones": ("ADI+RDI", {"annuli": options.annuli, "subsections": 4}),
    }
    for work, (mode, zones) in works.items():
        found = run(ours.klip_dataset, mode, zones)
        both = {
            "gpucoron": timed(lambda m=mode, z=zones: run(ours.klip_dataset, m, z), options.repeats)
        }
        kept = []
        both["pyKLIP"] = timed(
            lambda m=mode, z=zones, k=kept: k.append(run(parallelized.klip_dataset, m, z)),
            options.peer_repeats,
        )
        both["ratio"] = both["pyKLIP"]["median_s"] / both["gpucoron"]["median_s"]
        both["largest difference"] = float(np.nanmax(np.abs(found - kept[0])))
        results[work] = both
    results["RDI"] |= _others(images, angles, options)
    finish(results, options.out)


def _images(options):
    """Return science images and then references, with their star in the middle, and angles."""
    import numpy as np

    random, size = np.random.default_rng(0), options.size
    y, x = np.indices((size, size)) - size / 2
    modes = random.normal(size=(40, size, size)).cumsum(axis=1).cumsum(axis=2) / 100
    modes *= np.exp(-np.hypot(x, y) / (size / 6))
    images = np.tensordot(
        random.normal(size=(options.integrations + options.references, 40)), modes, 1
    )
    images += random.normal(size=images.shape)
    return images, np.repeat([0.0, 10.0], options.integrations // 2)


def _others(images, angles, options):
    """Time VIP's full-frame PCA, and jwst's KLIP of one integration times their number."""
    import numpy as np
    from jwst.coron.klip import klip as jwst_klip
    from stdatamodels.jwst.datamodels import CubeModel
    from vip_hci.psfsub import pca

    n = options.integrations
    science, references = images[:n], images[n:]
    # VIP wants the star in the middle pixel of an odd image
    cut = slice(1, None)
    settings = {"ncomp": options.numbasis, "scaling": "spat-mean", "svd_mode": "lapack"}
    settings |= {"imlib": "skimage", "interpolation": "biquintic", "verbose": False}
    settings |= {"collapse": "mean", "nproc": options.threads}
    cubes = [np.ascontiguousarray(a[:, cut, cut]) for a in (science, references)]
    vip = timed(lambda: pca(cubes[0], angles, cube_ref=cubes[1], **settings), options.peer_repeats)
    models = [
        CubeModel(data=a.astype(np.float32), err=np.ones(a.shape, np.float32))
        for a in (science[:1], references)
    ]
    one = timed(lambda: jwst_klip(*models, options.numbasis, return_psf=False), 1)
    jwst = {name: value * n for name, value in one.items() if name.endswith("_s")}
    return {"VIP": vip, "jwst, subtraction alone": jwst}


if __name__ == "__main__":
    main()
