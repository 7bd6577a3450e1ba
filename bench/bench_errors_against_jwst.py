"""How much the errors and flags of a run differ from those of the jwst preset.

    python bench/bench_errors_against_jwst.py ASN PSFMASK [ASN PSFMASK ...] [--out FILE]

For each association, by default and with the preset, each with its own number of KL modes: the
median over pixels of ERR over the preset's, in annuli about the middle of the image, for psfsub
and i2d; where ERR is 0 or not known; and the pixels with flags that only one of both sets.
"""

import warnings

from common import arguments, finish, limit_threads

ANNULI = ((0, 10), (10, 20), (20, 35), (35, 55), (55, 75))


def ratios(ours, theirs):
    """Median of ERR over the preset's in each annulus; None where the preset has none above 0."""
    import numpy as np

    y, x = np.indices(ours.shape[-2:])
    distance = np.hypot(y - (ours.shape[-2] - 1) / 2, x - (ours.shape[-1] - 1) / 2)
    known = np.isfinite(ours) & np.isfinite(theirs) & (theirs > 0)
    found = []
    for inner, outer in ANNULI:
        part = known & (distance >= inner) & (distance < outer)
        found.append(round(float(np.median(ours[part] / theirs[part])), 3) if part.any() else None)
    return found


def compared(ours, theirs):
    """Compare the errors, and flags where both have them, of two stacks or images."""
    import numpy as np

    from gpucoron.ops.dq import DO_NOT_USE, FLUX_ESTIMATED, OUTLIER

    flags = {"DO_NOT_USE": DO_NOT_USE, "OUTLIER": OUTLIER, "FLUX_ESTIMATED": FLUX_ESTIMATED}
    row = {"err over preset's": ratios(ours.err, theirs.err)}
    for name, image in (("default", ours), ("preset", theirs)):
        data = np.isfinite(image.data)
        row[f"{name}: ERR above 0, of pixels with data"] = float((image.err[data] > 0).mean())
    if ours.dq is not None and theirs.dq is not None:
        for flag, bit in flags.items():
            a, b = ((image.dq & np.uint32(bit)) != 0 for image in (ours, theirs))
            only = {"only default": float((a & ~b).mean()), "only preset": float((b & ~a).mean())}
            row[flag] = only
    return row


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("files", nargs="+", help="associations, each with its psfmask")
    args = parser.parse_args()
    limit_threads(args.threads)
    warnings.simplefilter("ignore")
    import gpucoron

    results = {}
    for asn, mask in zip(args.files[::2], args.files[1::2], strict=True):
        ours, theirs = (
            gpucoron.run(asn, psfmask=mask, preset=preset, keep=("psfsub", "i2d"), device="cpu")
            for preset in (None, "jwst")
        )
        name = ours.product.name
        stacks = [next(iter(r.product.psfsub.values())) for r in (ours, theirs)]
        images = [next(iter(r.product.i2ds.values())) for r in (ours, theirs)]
        results[name] = {"psfsub of the first exposure": compared(*stacks)}
        if images[0].data.shape == images[1].data.shape:
            results[name]["i2d"] = compared(*images)
        print(name, results[name], flush=True)
    finish({"annuli_px": ANNULI, "results": results}, args.out)


if __name__ == "__main__":
    main()
