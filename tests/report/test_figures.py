"""The figures of the report and of `Result.plot`: they show the data, and can be read."""

import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from gpucoron.analysis import measure
from gpucoron.backend.logs import quiet
from gpucoron.report import canvas, images, make_report, plots, sections
from tests.helpers.processes import python


@pytest.fixture(scope="module")
def result(planets):
    """Two rolls, two truncations, references of two integrations, outliers, a psfmask."""
    return planets[1]


@pytest.fixture(scope="module")
def drawn(result):
    """The figures of a report, by what they show."""
    figures, real = {}, sections.drawing

    def noted(figure, alt):
        figures.setdefault(alt, figure)
        return real(figure, alt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "drawing", noted)
        make_report(result)
    return figures


def axes_of(drawn, start):
    """The axes of the figure whose description begins so."""
    return next(figure.axes[0] for alt, figure in drawn.items() if alt.startswith(start))


def texts(axes):
    return {t.get_text(): t for t in axes.texts}


def test_combined_image(result, drawn):
    product = result.product
    sky = measure.locate_star(product.record)
    for truncate, i2d in product.i2ds.items():
        axes = axes_of(drawn, f"Combined image, {truncate} KL")
        (shown,) = axes.images
        np.testing.assert_array_equal(shown.get_array().filled(np.nan), i2d.data)
        assert shown.origin == "lower" and shown.cmap.name == "viridis"
        left, right, bottom, top = np.array(shown.get_extent()) / sky.arcsec_per_px
        ny, nx = i2d.data.shape
        x, y = sky.star
        np.testing.assert_allclose((left, bottom), (-0.5 - x, -0.5 - y))
        np.testing.assert_allclose((right, top), (nx - 0.5 - x, ny - 0.5 - y))
        assert [line.get_xydata().tolist() for line in axes.lines] == [[[0, 0]]]  # the star
        for name, way in (("N", sky.north), ("E", sky.east)):
            place = np.divide(texts(axes)[name].get_position(), 27)
            np.testing.assert_allclose(place, way, atol=1e-9)
        candidates = result.candidates()
        circles = [p for p in axes.patches if hasattr(p, "radius")]
        good = {str(k): c for k, c in enumerate(candidates, 1) if not c["caveat"]}
        assert good and good.keys() == texts(axes).keys() - {"N", "E"}
        for circle, c in zip(circles, good.values(), strict=True):
            assert np.hypot(*circle.center) == pytest.approx(c["separation"].value, rel=1e-3)
            east, north = (np.dot(circle.center, way) for way in (sky.east, sky.north))
            assert np.degrees(np.arctan2(east, north)) % 360 == pytest.approx(
                c["pa"].value, abs=0.2
            )


def test_the_middle_is_cut_out(result, drawn):
    whole, middle = (
        next(f for alt, f in drawn.items() if alt.startswith("Map") and end == alt.endswith("d"))
        for end in (False, True)
    )
    (shown,), (part,) = whole.axes[0].images, middle.axes[0].images
    pixel = measure.locate_star(result.product.record).arcsec_per_px
    x0, y0 = (round((part.get_extent()[k] - shown.get_extent()[k]) / pixel) for k in (0, 2))
    ny, nx = part.get_array().shape
    cut = shown.get_array()[y0 : y0 + ny, x0 : x0 + nx]
    np.testing.assert_array_equal(part.get_array().filled(9), cut.filled(9))
    assert ny < shown.get_array().shape[0]


def first_science(record):
    return next(e for e in record.exposures.values() if e.exptype == "science")


def test_outlines_are_where_the_mask_is_a_half(result, drawn):
    record = result.product.record
    x, y, scale = measure.star_in_exposure(first_science(record))
    for line in axes_of(drawn, "Mean image of S1").collections[0].get_segments():
        i, j = (np.floor(v).astype(int) for v in (line / scale + (x, y)).T)
        around = [record.mask[np.clip(j + a, 0, 159), np.clip(i + b, 0, 159)] for a, b in
                  ((0, 0), (0, 1), (1, 0), (1, 1))]  # fmt: skip
        assert (np.min(around, axis=0) <= 0.5).all() and (np.max(around, axis=0) >= 0.5).all()
    assert len(axes_of(drawn, "Combined image").collections[0].get_segments()) >= 2  # rolls


def test_residuals(result, drawn):
    e = first_science(result.product.record)
    x, y, scale = measure.star_in_exposure(e)
    yy, xx = np.indices(e.before.shape)
    separation = np.hypot(xx - x, yy - y) * scale
    width = measure.psf_fwhm("F444W")
    axes = axes_of(drawn, "Exposures: residual")
    assert axes.get_yscale() == "log" and len(axes.lines) == 6
    for line, image in zip(axes.lines, (e.before, e.after[2], e.after[6]), strict=False):
        r, rms = line.get_data()
        ring = image[(separation >= r[4] - width / 2) & (separation < r[4] + width / 2)]
        assert rms[4] == pytest.approx(np.nanstd(ring, ddof=1), rel=1e-4)
    names = [t.get_text() for t in axes.get_legend().get_texts()]
    assert names == ["before", "2 KL vectors", "6 KL vectors", "S1", "S2"]


def test_a_long_legend_is_cut():
    curves = [plots.Curve(f"S{k}", 1, np.arange(3), np.ones(3)) for k in range(1, 31)]
    axes = canvas.chart()
    plots.draw_residuals(axes, curves, "DN/s")
    assert axes.get_ylabel() == "rms (DN/s)"
    names = [t.get_text() for t in axes.get_legend().get_texts()]
    assert len(axes.lines) == 30 and len(names) == 12 and names[-1] == "and 20 more"


def test_shifts(result, drawn):
    fits = next(iter(result.product.fits.values()))
    median = [[np.median(fits[n][fits["ref_plane"] == p]) for p in range(1, 11)] for n in "xy"]
    axes = axes_of(drawn, "Shifts of the references onto S1")
    dots, points, rings = (line.get_xydata() for line in axes.lines[:3])
    np.testing.assert_array_equal(dots, np.transpose([fits["x"], fits["y"]]))
    np.testing.assert_allclose(points.T, median)
    assert len(rings) == len(measure.reference_shifts(fits, result.product.record.sources).outliers)
    assert texts(axes).keys() == {"R1", "R2", "R3", "R4", "R5"}
    within = axes_of(drawn, "Shifts onto S1 less").lines[0].get_xydata().T
    pairs = np.reshape(median, (2, 5, 2))
    expected = 1000 * (pairs - np.median(pairs, axis=2, keepdims=True)).reshape(2, 10)
    np.testing.assert_allclose(within, expected, atol=1e-9)


def test_eigenvalues(result, drawn):
    bases = [v for e in result.product.record.exposures.values() for v in e.eigenvalues]
    axes = axes_of(drawn, "Spectrum")
    number, values = axes.lines[0].get_data()
    np.testing.assert_array_equal(number, np.arange(1, len(bases[0]) + 1))
    np.testing.assert_allclose(values, np.median(bases, axis=0))
    assert texts(axes).keys() == {"2", "6"}  # the truncations
    axes = axes_of(drawn, "Variance")
    share = np.median([100 * v / v.sum() for v in bases], axis=0)
    np.testing.assert_allclose(axes.patches[0].get_data().values, share)
    left = 100 - np.median([np.cumsum(100 * v / v.sum()) for v in bases], axis=0)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), left[:-1], atol=1e-9)


def test_flags_and_timeline(result, drawn):
    record = result.product.record
    axes = axes_of(drawn, "Number of outliers")
    shown = np.concatenate([p.get_data().values for p in axes.patches])
    noted = np.concatenate([e.outliers for e in record.exposures.values()])
    np.testing.assert_array_equal(shown, noted)
    colours = [p.get_facecolor()[:3] for p in axes.patches]
    assert colours == [to_rgb(canvas.COLOURS[k]) for k in (1, 1, 0, 0, 0, 0, 0)]
    axes = axes_of(drawn, "When")
    steps = [t.get_text() for t in axes.get_yticklabels()]
    begin = min(s[1] for s in result.spans)
    for step, bars in zip(steps, axes.collections, strict=True):
        own = [s[1:] for s in result.spans if s[0] == step]
        edges = np.concatenate([p.vertices[:, 0] for p in bars.get_paths()])
        assert edges.min() == pytest.approx(min(a for a, _ in own) - begin)
        assert edges.max() == pytest.approx(max(b for _, b in own) - begin)


def test_plot(result):
    figure = result.plot()
    image, residuals, shifts, eigenvalues = figure.axes[:4]
    shown = image.images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(shown, result.product.i2ds[6].data)
    assert len(residuals.lines) == 2 and len(eigenvalues.lines) == 1
    assert [t.get_text() for t in shifts.get_legend().get_texts()] == ["S1", "S2"]
    assert not any("not in this run" in texts(axes) for axes in figure.axes)


# ---- fit to be read


def test_writing_is_inside_large_enough_and_apart(result, drawn):
    for alt, figure in [*drawn.items(), ("plot", result.plot())]:
        figure.draw_without_rendering()
        frame = figure.bbox.padded(1)
        every = [a for outer in figure.axes for a in (outer, *outer.child_axes)]
        for axes in (a for a in every if a.axison):  # cut-outs have none
            ticks = [axes.get_xticklabels(), axes.get_yticklabels()]
            for text in [*ticks[0], *ticks[1], *axes.texts, axes.title, axes.xaxis.label]:
                box = text.get_window_extent()
                if text.get_text() and box.width:
                    assert text.get_fontsize() >= 9, (alt, text)
                    if text in axes.texts or text is axes.title:
                        assert frame.contains(*box.min) and frame.contains(*box.max), (alt, text)
            for labels, limits in zip(ticks, (axes.get_xlim(), axes.get_ylim()), strict=True):
                low, high = sorted(limits)
                axis = 0 if labels is ticks[0] else 1
                boxes = [t.get_window_extent() for t in labels if t.get_text()
                         and low <= t.get_position()[axis] <= high]  # fmt: skip
                for one, next_one in zip(boxes, boxes[1:], strict=False):
                    assert not one.overlaps(next_one), (alt, axis)
                assert all(frame.contains(*b.min) and frame.contains(*b.max) for b in boxes), alt


@pytest.mark.parametrize("points", [[(2, 2), (2.1, 2), (2, 2.1)], [(0.05, 5), (9.9, 9.9), (5, 0)]])
def test_labels_do_not_collide(points):
    axes = canvas.chart()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    at = points + 0.5 * canvas.label_directions(axes, points)
    assert (at > 0).all() and (at < 10).all()
    apart = [np.hypot(*(a - b)) for k, a in enumerate(at) for b in at[:k]]
    assert min(apart) > 0.6


@pytest.mark.parametrize("scale", [1e-6, 0.03, 1.0, 4e4])
@pytest.mark.parametrize("level", [0.0, -3.0, 50.0])
def test_the_stretch_shows_noise_and_sources(scale, level):
    image = np.random.default_rng(1).normal(level, 1, (80, 80)) * scale
    image[40:44, 40:44] += 300 * scale
    image[:5] = np.nan
    norm = images.asinh_norm(image)
    noise = np.asarray(norm(np.array([level - 1, level + 1]) * scale))
    assert np.diff(noise) > 0.01 and norm.vmax > (level + 250) * scale
    values = images.round_values(norm)
    assert 3 <= len(values) <= 11 and all(norm.vmin <= v <= norm.vmax for v in values)
    assert np.diff(np.asarray(norm(np.array(values)))).min() >= 0.089
    for v in values:
        assert f"{abs(v):.0e}"[0] in "0125" and float(f"{v:.0e}") == pytest.approx(v)


def test_images_larger_than_a_page_are_averaged():
    for size, kind in ((700, "none"), (701, "auto")):
        axes, norm = canvas.image_axes((size, size)), images.asinh_norm(np.eye(size))
        images.draw_image(axes, np.zeros((size, size)), norm, images.Frame(), unit="")
        assert axes.images[0].get_interpolation() == kind


# ---- nothing but the file


def test_threads_do_not_disturb_each_other(result):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(make_report, [result, result])
    assert len(first) == len(second)  # ids are random


def test_logging_of_a_library_is_kept_from_stderr_only(caplog, capsys):
    with quiet("matplotlib"):
        logging.getLogger("matplotlib.font_manager").warning("building")
    assert "building" in caplog.text and capsys.readouterr().err == ""


def test_no_folder_for_fonts_no_pyplot_and_silence(result, tmp_path):
    pickled = tmp_path / "result.pickle"
    pickled.write_bytes(pickle.dumps(result))
    code = (
        "import pickle, sys, pathlib\n"
        f"result = pickle.loads(pathlib.Path({str(pickled)!r}).read_bytes())\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules)\n"
        f"result.report({str(tmp_path / 'r.html')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = python("-c", code, MPLCONFIGDIR="/dev/null/x", TMPDIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "r.html").stat().st_size > 100_000


def test_hostile_names_are_not_parsed_as_mathematics(result, monkeypatch):
    monkeypatch.setattr(result.product, "name", r"$\frac{1$ <b>")
    figure = result.plot()
    figure.draw_without_rendering()
    assert figure.get_suptitle() == r"$\frac{1$ <b>"
    assert isinstance(figure, Figure)
