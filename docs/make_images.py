"""Make the pictures of README: real data (AU Mic, F444W) and the demo.

    python docs/make_images.py aumic DATA_FOLDER     docs/images/aumic_f444w.png, prints numbers
    python docs/make_images.py demo DEMO_FOLDER      docs/images/demo.png

DATA_FOLDER holds aumic_f444w/ (association and exposures) and psfmask/; DEMO_FOLDER is where
`gpucoron demo` worked.
"""

import argparse
import json
import warnings
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from astropy.io import fits  # noqa: E402
from astropy.visualization import AsinhStretch, ImageNormalize  # noqa: E402
from astropy.wcs import WCS  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import Circle  # noqa: E402

IMAGES = Path(__file__).parent / "images"
MASKED_ARCSEC = 0.35  # covered in the pictures: what is left of the star close to the mask
FIELD_ARCSEC = 5.2  # half a side
DEMO_FIELD_ARCSEC = 4.4
RECENTRED = (150, 174)  # x, y from 0, where AU Mic's publisher put the star
SCATTER_PX = (8, 40)  # from AU Mic's star, where its image is compared with what is left
SOURCE_ARCSEC, SOURCE_WITHIN = 5.66, 0.12  # of AU Mic's compact source from the star
SOURCE_BOX = 5  # px, half a side of what a Gaussian is fitted to
DEMO_LIMITS = (-2, 10)
COLOURS = "inferno"  # perceptually uniform


def show(ax, image, star, half_px, limits, title, softening):
    """Show an image round the star with an asinh stretch; the star itself is covered."""
    norm = ImageNormalize(vmin=limits[0], vmax=limits[1], stretch=AsinhStretch(softening))
    colours = plt.get_cmap(COLOURS).with_extremes(bad="0.35")
    drawn = ax.imshow(image, origin="lower", cmap=colours, norm=norm, interpolation="nearest")
    ax.set_xlim(star[0] - half_px, star[0] + half_px)
    ax.set_ylim(star[1] - half_px, star[1] + half_px)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title, fontsize=9)
    bar = ax.figure.colorbar(drawn, ax=ax, orientation="horizontal", pad=0.02, fraction=0.05)
    ticks = [t for t in (-1, 0, 1, 3, 5, 10, 50, 100, 200, 400) if limits[0] <= t <= limits[1]]
    ticks = [t for t in ticks if t == 0 or abs(t) >= limits[1] / 10]
    bar.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    bar.set_label("MJy/sr", fontsize=7)


def cover(ax, star, radius_px):
    """Cover the star and mark where it is."""
    ax.add_patch(Circle(star, radius_px, facecolor="black", edgecolor="0.7", linewidth=0.8))
    ax.plot(*star, marker="*", color="white", markersize=5, markeredgewidth=0)


def compass(ax, wcs, at, length_px):
    """Draw arrows to north and east as the WCS has them."""
    ra, dec = (float(v) for v in wcs.all_pix2world(*at, 0))
    small = 1 / 3600
    for name, sky in (("N", (ra, dec + small)), ("E", (ra + small / np.cos(np.radians(dec)), dec))):
        step = np.array(wcs.all_world2pix(*sky, 0)) - at
        step *= length_px / np.hypot(*step)
        ax.annotate(
            "",
            xy=at + step,
            xytext=at,
            arrowprops={"arrowstyle": "-|>", "color": "white", "linewidth": 1.2},
        )
        ax.text(*(at + 1.25 * step), name, color="white", fontsize=8, ha="center", va="center")


def scale_bar(ax, start, length_px, label):
    """Draw a bar and what it is."""
    ax.plot([start[0], start[0] + length_px], [start[1]] * 2, color="white", linewidth=2)
    ax.text(
        start[0] + length_px / 2,
        start[1] + 0.25 * length_px,
        label,
        color="white",
        fontsize=8,
        ha="center",
    )


def annotate(ax, wcs, star, half_px, scale):
    """Draw compass and scale bar into the corners."""
    compass(ax, wcs, np.array(star) + half_px * np.array([-0.62, 0.55]), 0.24 * half_px)
    scale_bar(ax, np.array(star) + half_px * np.array([0.5, -0.9]), 1 / scale, '1"')


def celestial(header):
    """Return the celestial WCS of a header, and its pixel scale in arcsec."""
    from astropy.wcs.utils import proj_plane_pixel_scales

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dates in the header
        wcs = WCS(header).celestial
    return wcs, float(proj_plane_pixel_scales(wcs).mean()) * 3600


def aumic(data: Path) -> Path:
    """One frame, both rolls' residuals, and the combined image of AU Mic."""
    import gpucoron
    from gpucoron.io.exposures import read_exposure

    folder = data / "aumic_f444w"
    runs = [
        gpucoron.run(
            next(folder.glob("*_asn.json")),
            device="cpu",
            keep=("psfsub", "i2d"),
            psfmask=data / "psfmask" / "jwst_nircam_psfmask_0019.fits",
            psfmask_center="star",
            klip_truncate=5,
            resample_center=center,
        )
        for center in ("star", "wcs")
    ]
    result = runs[0].product
    roots = [root for root, _ in result.psfsub]
    frames = [
        read_exposure(folder / f"{root}_calints.fits", "science").stack.data[0] for root in roots
    ]
    frame = frames[0]
    stars = [pixel(result.stars[root]) for root in roots]
    for root, image in zip(roots, frames, strict=True):
        before, after = (scatter(i) for i in (image, result.psfsub[root].data[0]))
        print(f"{root}: {before:.1f} MJy/sr {SCATTER_PX[0]} to {SCATTER_PX[1]} px from the star")
        print(f"{root}: {after:.3f} MJy/sr in psfsub")
    for run, center in zip(runs, ("star", "wcs"), strict=True):
        print(f"resample.center={center}: compact source {compact_source(run)}")
    combined = pixel(result.star.position)
    scale = result.wcs.pixel_scale
    half = FIELD_ARCSEC / scale
    figure, axes = plt.subplots(1, 4, figsize=(12.4, 3.75), layout="constrained")
    show(axes[0], frame, stars[0], half, (0, 400), "calints, roll 1", 0.03)
    for ax, root, star, number in zip(axes[1:3], roots, stars, (1, 2), strict=True):
        show(ax, result.psfsub[root].data[0], star, half, (-1, 10), f"psfsub, roll {number}", 0.2)
    show(axes[3], result.i2d.data, combined, half, (-1, 10), "i2d, both rolls about the star", 0.2)
    for ax, star in zip(axes, (stars[0], *stars, combined), strict=True):
        cover(ax, star, MASKED_ARCSEC / scale)
    wcs, _ = celestial(fits.Header([card[:2] for card in result.wcs.to_header_cards()]))
    annotate(axes[3], wcs, combined, half, scale)
    return save(figure, "aumic_f444w.png")


def scatter(image):
    """Return the standard deviation of the pixels of a ring about AU Mic's star, MJy/sr."""
    y, x = np.indices(image.shape)
    r = np.hypot(x - RECENTRED[0], y - RECENTRED[1])
    return np.nanstd(image[(r >= SCATTER_PX[0]) & (r <= SCATTER_PX[1])])


def compact_source(run):
    """Describe AU Mic's compact source: a Gaussian and a constant fitted to i2d, the candidate."""
    from scipy.optimize import least_squares

    i2d, table = run.product.i2d.data, run.candidates()
    near = np.argmin(np.abs(np.asarray(table["separation"]) - SOURCE_ARCSEC))
    star, scale = pixel(run.product.star.position), run.product.wcs.pixel_scale
    y, x = np.indices(i2d.shape)
    ring = np.abs(np.hypot(x - star[0], y - star[1]) * scale - SOURCE_ARCSEC) < SOURCE_WITHIN
    row, column = np.unravel_index(np.argmax(np.where(ring & np.isfinite(i2d), i2d, -9)), i2d.shape)
    box = np.s_[
        row - SOURCE_BOX : row + SOURCE_BOX + 1, column - SOURCE_BOX : column + SOURCE_BOX + 1
    ]
    x, y, image = x[box], y[box], i2d[box]

    def left(p):
        gauss = p[0] * np.exp(-((x - p[1]) ** 2 + (y - p[2]) ** 2) / (2 * p[3] ** 2))
        return (gauss + p[4] - image).ravel()

    peak, _, _, sigma, _ = least_squares(left, [image.max(), column, row, 1.0, 0.0]).x
    found = (float(np.asarray(table[name])[near]) for name in ("separation", "significance"))
    return (
        f"of {peak:.2f} MJy/sr, FWHM {2.3548 * abs(sigma):.2f} px; candidate at "
        "{:.2f} arcsec, {:.1f} sigma".format(*found)
    )


def pixel(star):
    """Return x, y of the star in the first integration, pixels from 0."""
    return float(star.x[0]) - 1, float(star.y[0]) - 1


def demo(folder: Path) -> Path:
    """One frame, a residual, and the combined image of the demo, with the planets' true places."""
    truth = json.loads((folder / "input" / "truth.json").read_text())
    i2d = next((folder / "products").glob("*_i2d.fits"))
    subtracted = sorted((folder / "products").glob("*_psfsub.fits"))[0]
    root = next(r for r in truth["planets"][0]["pixels"] if subtracted.name.startswith(r))
    frame = fits.getdata(folder / "input" / f"{root}_calints.fits", "SCI")[0]
    residual = np.nanmedian(fits.getdata(subtracted, "SCI"), axis=0)
    wcs, scale = celestial(fits.getheader(i2d, "SCI"))
    star = np.array(wcs.all_world2pix(truth["star"]["ra"], truth["star"]["dec"], 0), dtype=float)
    own = np.array(truth["mask_centre"], dtype=float)
    planets = truth["planets"]
    in_i2d = [np.array(wcs.all_world2pix(p["ra"], p["dec"], 0), dtype=float) for p in planets]
    figure, axes = plt.subplots(1, 3, figsize=(9.4, 4.0), layout="constrained")
    half = DEMO_FIELD_ARCSEC / scale
    show(axes[0], frame, own, half, (0, 400), "calints, one integration", 0.03)
    show(axes[1], residual, own, half, DEMO_LIMITS, "psfsub, roll 1, median", 0.2)
    show(axes[2], fits.getdata(i2d, "SCI"), star, half, DEMO_LIMITS, "i2d, both rolls", 0.2)
    for ax, place in zip(axes, (own, own, star), strict=True):
        cover(ax, place, MASKED_ARCSEC / scale)
    for ax, places in ((axes[1], [p["pixels"][root] for p in planets]), (axes[2], in_i2d)):
        for place in places:
            ax.add_patch(Circle(place, 0.28 / scale, fill=False, edgecolor="cyan", linewidth=1.0))
    annotate(axes[2], wcs, star, half, scale)
    return save(figure, "demo.png")


def save(figure, name: str) -> Path:
    """Write a picture."""
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / name, dpi=110)
    return IMAGES / name


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("which", choices=("aumic", "demo"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print({"aumic": aumic, "demo": demo}[given.which](given.folder))


if __name__ == "__main__":
    main()
