"""The report of whole runs: all of it, parts of it, and what files may hold."""

import copy
import math
import re
import warnings
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

import gpucoron
from gpucoron.analysis import measure, photometry
from gpucoron.analysis.measure import locate_star, reference_shifts
from gpucoron.core.star import CombinedStar, StarPositions
from gpucoron.report import make_report
from gpucoron.report.modes import modes_compared
from gpucoron.report.sections import star_text
from gpucoron.simulate import simulate
from gpucoron.steps.align_refs import FITS_DTYPE
from tests.helpers.scenes import gaussian
from tests.helpers.tiny_sets import TinySet
from tests.report.conftest import ROLLS

SECTIONS = set("image snr candidates exposures rms shifts references eigen flags members".split())
SKIP = {"skip": True}
VOID = {"meta", "link", "input", "img"}


class Page(HTMLParser):
    """Text by section; complains of tags that do not match and of anything that could act."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.ids = [], {}, []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href"):
            assert attrs.get(name, "#")[:1] == "#" or attrs[name].startswith("data:")
        if "id" in attrs:
            self.ids.append(attrs["id"])
        self.handle_data(attrs.get("alt", ""))
        if tag not in VOID:
            self.open.append((tag, attrs.get("id")))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop()[0] == tag

    def handle_data(self, data):
        for tag, name in self.open:
            if tag == "section":
                self.text[name] = " ".join([self.text.get(name, ""), *data.split()])


def check(result, **options):
    """Make a report, and look at what every report has to have."""
    html = make_report(result, **options)
    page = Page(html)
    assert len(set(page.ids)) == len(page.ids)
    drawn = re.sub(r'data:[^"]*|<style>.*?</style>', "", html, flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf)\b", drawn)
    for target in re.findall(r'<a href="#([^"]+)"', html):
        assert target in page.ids
    return html, page.text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinySet(tmp_path_factory.mktemp("report"))


def run(tiny, **keywords):
    options = {"psfmask": tiny.mask, "device": "cpu", "klip_truncate": 3, "keep": ()}
    return gpucoron.run(tiny.asn, **options | keywords)


@pytest.fixture(scope="module")
def usual(tiny):
    """A run whose result tests take apart: a copy of it."""
    return run(tiny)


# ---- all of it
def test_planets_are_in_the_table_where_they_are(planets):
    made, result = planets
    seen = result.candidates(star=made.star)
    clear = seen[seen["caveat"] == ""]
    for planet in made.planets:
        apart = np.hypot(clear["ra"].value - planet.ra, clear["dec"].value - planet.dec)
        near = clear[int(np.argmin(apart))]
        across = math.radians(near["pa"].value - planet.angle) * planet.separation
        assert math.hypot(near["separation"].value - planet.separation, across) < 0.02  # arcsec
        assert near["significance"] > 5 and near["flux"].unit == "Jy"
        assert abs(near["flux"].value - planet.flux_jy) < 4 * near["flux_err"].value
        assert near["flux"].value == pytest.approx(planet.flux_jy, rel=0.2)
        assert abs(near["dec"].value - planet.dec) * 3600 < 0.02
    assert len(clear) == len(made.planets)


def test_the_table_is_saved_and_read_back(planets, tmp_path):
    table = planets[1].candidates()
    table.write(tmp_path / "candidates.ecsv")
    again = type(table).read(tmp_path / "candidates.ecsv")
    assert again.colnames == table.colnames and len(again) == len(table) >= 3
    assert again["pa"].unit == "deg" and again.meta["forward_model"] is True
    for name in ("separation", "ra_err", "flux", "snr"):
        np.testing.assert_allclose(np.array(again[name]), np.array(table[name]))


def test_the_star_is_found_by_the_reference_pixel(planets):
    made, result = planets
    given, own = (result.candidates(star=star) for star in (made.star, None))
    for planet in made.planets:
        for found in (given, own):
            assert min(abs(found["separation"].value - planet.separation)) < 0.06


def test_the_report_of_a_whole_run(planets):
    made, result = planets
    html, text = check(result, star=made.star)
    assert set(text) == {*SECTIONS, "modes", "timeline", "parameters", "files"}
    assert "missing" not in re.findall(r'class="(\w+)"', html.split('<section id="files')[0])
    listed = [float(v) for v in re.findall(r"(\d+\.\d\d\d)″", text["candidates"])]
    for planet in made.planets:
        assert min(abs(v - planet.separation) for v in listed) < 0.02
    assert "2 KL vectors" in text["image"] and "6 KL vectors" in text["image"]
    assert "2 KL vectors explain" in text["eigen"]
    for exposure in result.product.record.exposures.values():
        assert exposure.file in text["members"] and exposure.root in text["flags"]
    assert "klip.truncate" in text["parameters"] and "2, 6" in text["parameters"]
    for step in result.timings:
        assert step in text["timeline"]
    assert len(html) < 5e6


def test_numbers_of_modes_are_compared(planets):
    """The rms is that of the image's annuli, the SNR that of each image, throughput the curve's."""
    made, result = planets
    record = result.product.record
    sky = locate_star(record, made.star)
    _, candidates = photometry.search(record, sky, 6)
    separation, truncations = np.linspace(0.05, 3, 60), (2, 6)
    throughput = np.array([np.full(60, 0.8), np.linspace(0.2, 0.6, 60)])
    contrast = SimpleNamespace(
        calibrated=True, separation=separation, truncations=truncations, throughput=throughput
    )
    compared = modes_compared(record, sky, candidates, contrast)
    assert "SNR" in compared["view"].alt and compared["unit"] == record.unit
    for truncate, row in zip(truncations, compared["rows"], strict=True):
        found = dict(zip(compared["header"], row, strict=True))
        assert found["KL modes"] == str(truncate)
        for k, candidate in enumerate(candidates[:5], 1):
            value = candidate.by_truncation[truncate]
            assert float(found[f"SNR of {k}"].replace("−", "-")) == pytest.approx(value, abs=0.06)
        r, rms = measure.profile(record.images[truncate], sky.star, max(sky.fwhm_px, 1.0))
        r = r * sky.arcsec_per_px
        edges = np.linspace(r[0], r[-1], 5)
        inner, outer = r < edges[1], r >= edges[3]
        by_range = [found[name] for name in compared["header"] if name.startswith("rms")]
        assert float(by_range[0]) == pytest.approx(np.median(rms[inner]), rel=0.01)
        assert float(by_range[3]) == pytest.approx(np.median(rms[outer]), rel=0.01)
        shares = [found[name] for name in compared["header"] if name.startswith("through")]
        near = (separation >= edges[0]) & (separation < edges[1])
        expected = np.median(throughput[truncations.index(truncate)][near])
        assert float(shares[0]) == pytest.approx(expected, abs=0.006)
    single = SimpleNamespace(images={2: record.images[2]}, unit=record.unit)
    assert modes_compared(single, sky, candidates, None) is None


@pytest.mark.parametrize(
    ("star", "said"),
    [
        ((), "by a model of the optics: x, y ="),
        (("wcs", math.nan, "wcs"), "assumed where the exposures' headers have it"),
        (("given", 0.02, "star"), "at the position given: x, y = 12.50, 8.25 ± 0.02, 0.02 px"),
        (("given", 0.02, "star"), "combined about it; by their GWCSs it is up to 0.250″"),
        (("model", 0.3, "wcs"), "by a model of the optics: x, y = 12.50, 8.25 ± 0.3, 0.3 px"),
        (("model", 0.3, "wcs"), "the exposures differ by up to 0.25″"),
        (("symmetry", math.nan, "wcs"), "by the symmetry of the images: x, y = 12.50, 8.25; the"),
    ],
)
def test_where_the_star_is_from(star, said, planets):
    sky, found = locate_star(planets[1].product.record), planets[1].product.star
    if star:
        source, error, center = star
        position = StarPositions.constant((12.5, 8.25), 1, error, source)
        found = CombinedStar(position, (150.2, -30.4), center, 0.25)
    assert said in star_text(sky, found)
    assert star_text(None, found) == "No exposure has the position of the star."


def test_noise_alone_has_no_candidate(tmp_path):
    empty = {"planets": (), "disk": False, "acquisition_px": 0.0}
    sizes = {"shape": (120, 120), "n_integrations": 2, "n_references": 4}
    made = simulate(tmp_path, seed=9, **sizes, **ROLLS, **empty)
    result = gpucoron.run(made.asn, psfmask=made.psfmask, klip_truncate=5, keep=(), device="cpu")
    assert not (result.candidates()["caveat"] == "").any()


def test_what_is_noted_is_what_the_products_hold(tiny):
    result = run(tiny, align="each", keep=("crfints", "psfalign", "psfsub", "i2d"))
    product, record = result.product, result.product.record
    for root, entry in record.exposures.items():
        if entry.exptype == "science":
            aligned = product.psfalign[root].data
            assert len(entry.eigenvalues) == len(aligned)
            for images, values in zip(aligned, entry.eigenvalues, strict=True):
                flat = images.reshape(len(images), -1)
                direct = np.linalg.eigvalsh(np.cov(flat))[::-1]
                np.testing.assert_allclose(values, direct[: len(values)], rtol=1e-8)
    for (root, _), stack in product.psfsub.items():
        entry, before = record.exposures[root], product.crfints[root]
        for noted, images in ((entry.after[3], stack.data), (entry.before, before.data)):
            mean = np.ma.masked_invalid(images).mean(axis=0).filled(np.nan)
            np.testing.assert_allclose(noted, mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(entry.unusable, (before.dq & 1 > 0).sum(axis=(1, 2)))
    np.testing.assert_array_equal(record.images[3], product.i2d.data)


# ---- parts of it
@pytest.mark.parametrize(
    "keywords, panels, says",
    [
        ({"klip": SKIP}, 2, {"exposures": "no PSF was subtracted", "eigen": "was skipped"}),
        ({"resample": SKIP}, 3, {"image": "was skipped", "candidates": "no combined image"}),
        ({"align_refs": SKIP}, 3, {"shifts": "No fits"}),
        ({"outlier_detection": SKIP}, 4, {"flags": "was skipped"}),
        ({"psfmask": None}, 4, {"image": "No psfmask"}),
        ({"contrast": True}, 4, {"contrast": "Convention: t.ppf"}),
        ({"align": "first"}, 4, {"eigen": "over 2 bases"}),
        ({"preset": "jwst"}, 4, {"shifts": "One point for each reference"}),
        ({"klip_truncate": (0, 1, 2, 100)}, 4, {"image": "5 KL vectors"}),
        (
            {"resample": {"output_shape": (2, 2), "crpix": (0.5, 0.5)}},
            4,
            {"snr": "no finite pixel"},
        ),
        ({"threads": 1}, 4, {"files": "Nothing was written"}),
    ],
)
def test_what_is_not_there_is_said(tiny, keywords, panels, says):
    result = run(tiny, **keywords)
    _, text = check(result)
    for section, part in says.items():
        assert part in text[section]
    texts = [t.get_text() for axes in result.plot().axes for t in axes.texts]
    assert texts.count("not in this run") == 4 - panels
    result.product.record = None
    assert "kept no diagnostics" in make_report(result)


def test_one_integration_of_each(tmp_path):
    tiny = TinySet(tmp_path)
    tiny.edit(**dict.fromkeys(("SCI", "ERR", "DQ"), lambda a: a[:1]))
    tiny.edit(**dict.fromkeys(("VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")))
    tiny.members(lambda name: name not in (tiny.science[1].name, *(p.name for p in tiny.psf[1:])))
    html, text = check(run(tiny))
    assert "No outlier was found" not in text["flags"] and "1 integration in 1 exposure" in html
    _, text = check(run(tiny, preset="jwst"))
    assert "No outlier was found" in text["flags"]


SPOILT = [
    {"SCI": lambda a: np.where(np.arange(len(a))[:, None, None] == 0, np.nan, a)},
    {"DQ": lambda a: a | np.uint32(np.indices(a.shape)[1] > 18)},
    *({"CRPIX1": None, "RA_REF": None}, {"CRPIX1": 1e9}, {"FILTER": "CLEAR"}),
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_holes_and_missing_keywords(tmp_path, spoil):
    tiny = TinySet(tmp_path)
    tiny.edit(**spoil)
    check(run(tiny))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 1e30, -3.0])
def test_images_of_one_value(usual, value):
    result = copy.deepcopy(usual)
    record = result.product.record
    for k in record.images:
        record.images[k] = np.full_like(record.images[k], value)
    for e in record.exposures.values():
        if e.before is not None:
            e.before = np.full_like(e.before, value)
            e.after = {k: np.full_like(v, value) for k, v in e.after.items()}
            e.eigenvalues = [np.full_like(v, abs(value)) for v in e.eigenvalues]
    for table in result.product.fits.values():
        table["x"], table["y_err"], table["status"] = value, value, 1
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        make_report(result)
        result.plot().draw_without_rendering()


def test_several_products(tmp_path):
    tiny = TinySet(tmp_path)
    tiny.split("one", "two")
    result = run(tiny)
    _, text = check(result)
    assert {"p1-image", "p2-image", "timeline"} <= set(text)
    path = result.report(tmp_path / "out")
    assert path == tmp_path / "out" / f"{tiny.asn.stem}_report.html"


# ---- text from files
def test_text_from_files_stays_text(tmp_path):
    tiny = TinySet(tmp_path)
    evil = "</title><script>alert(1)</script>"
    tiny.edit(TARGNAME=evil, DETECTOR=None)

    def name(content):
        content["target"] = evil
        member = {"expname": "<img src=x onerror=y>.fits", "exptype": "<b>"}
        content["products"][0]["members"].append(member)

    tiny.edit_asn(name)
    result = run(tiny)
    result.product.record.program = "\ud800"  # a lone surrogate cannot be written as UTF-8
    html, text = check(result)
    assert evil in text["members"] and "<img src=x onerror=y>.fits" in text["members"]
    assert "default-src 'none'" in html
    assert result.report(tmp_path).read_bytes()


# ---- where outliers are
def test_references_that_stand_out_are_named():
    rng = np.random.default_rng(1)
    sources = [(f"e{k // 4}", k % 4 + 1) for k in range(24)]
    fits = np.zeros(48, FITS_DTYPE)
    fits["ref_plane"], fits["sci_integration"] = np.tile(np.arange(1, 25), 2), np.repeat([1, 2], 24)
    exposure = (fits["ref_plane"] - 1) // 4
    fits["x"], fits["y"] = (f(exposure) * 0.3 + rng.normal(0, 0.003, 48) for f in (np.cos, np.sin))
    fits["x_err"] = fits["y_err"] = 0.003
    assert reference_shifts(fits, sources).outliers == []
    fits["x"][[5, 29]] += 0.06
    fits["y"][[9, 33]] += 4
    fits["status"][20] = 1
    found = dict(reference_shifts(fits, sources).outliers)
    assert list(found) == [5, 9, 20]
    for k, reason in {5: "exposure's median", 9: "median of all", 20: "1 failed fit"}.items():
        assert reason in found[k]
    assert reference_shifts(fits[:0], ()).names == []
    assert reference_shifts(fits, ()).names[3] == "reference 4 integration 1"


# ---- caveats
def add_source(images, key, x, y, peak=6.0):
    """Add a point source to an image of a dictionary, as a new array."""
    images[key] = images[key] + gaussian(images[key].shape, x, y, peak, 2.5).astype("f4")


def test_what_one_exposure_alone_shows_gets_a_caveat(planets):
    made, result = planets
    result = copy.deepcopy(result)
    record = result.product.record
    first, second = (e for e in record.exposures.values() if e.exptype == "science")
    sky = first.wcs.pixel_to_sky(120.0, 95.0)
    x, y = record.wcs.sky_to_pixel(*sky)
    add_source(record.images, 6, x, y, 3.0)
    add_source(first.after, 6, 120.0, 95.0)

    def caveat():
        candidates = result.candidates(star=made.star)
        places = np.hypot(candidates["x"].value - x, candidates["y"].value - y)
        return candidates["caveat"][int(np.argmin(places))]

    assert caveat() == "in 1 of 2 exposures only"
    add_source(second.after, 6, *second.wcs.sky_to_pixel(*sky))
    assert caveat() == ""
