"""Which coronagraph: the user's choice, the keywords of an exposure, numbers of real files."""

import json
from pathlib import Path

import numpy as np
import pytest
from asdf.exceptions import ValidationError
from astropy.io import fits
from scipy import special
from stdatamodels.jwst import datamodels

from gpucoron.errors import ParameterError
from gpucoron.io.exposures import ExposureMeta, read_meta
from gpucoron.optics.instruments import MODES, choose_optics, load_aperture, optics_of
from gpucoron.optics.masks import bar_half_width
from gpucoron.simulate import simulate

NIRCAM = {"instrument": "NIRCAM", "detector": "NRCALONG", "channel": "LONG"}
BAR = NIRCAM | {"pupil": "MASKBAR", "coronmsk": "MASKALWB", "subarray": "SUB320ALWB"}
ROUND = NIRCAM | {"pupil": "MASKRND", "coronmsk": "MASKA335R", "subarray": "SUB320A335R"}
SW = {"detector": "NRCA4", "channel": "SHORT", "filter": "F200W", "subarray": "SUB400X256ALWB"}
LYOT = {"instrument": "MIRI", "detector": "MIRIMAGE", "filter": "F2300C", "coronmsk": "LYOT_2300"}


def corner(x, y):
    return {"corner_x": x, "corner_y": y}


@pytest.mark.parametrize("mode", MODES, ids=lambda m: f"{m.name} {m.mask} {m.metadata['detector']}")
def test_every_mode_has_its_aperture_for_every_filter(mode):
    for name in mode.filters:
        instrument, bandpass = choose_optics(mode.name, name, mode.mask)
        assert instrument.metadata == mode.metadata and bandpass == mode.filters[name]
        aperture = load_aperture(bandpass.aperture)
        assert aperture.name.split("_")[0] in (mode.metadata["detector"], "NRCA5", "MIRIM")
        assert bandpass.subarray.removeprefix("SUB").startswith(str(aperture.shape[1])[:3]) or (
            mode.metadata["name"] == "MIRI"
        )
        assert 0 < bandpass.width_um < 0.45 * bandpass.centre_um
        x, y = aperture.centre_in(aperture.corner)
        assert 20 < x < aperture.shape[1] - 20 and 20 < y < aperture.shape[0] - 20
    assert mode.default_filter in mode.filters


@pytest.mark.parametrize(
    ("asked", "detector", "coronmsk", "filter_name"),
    [
        ((None, None), "NRCALONG", "MASKA335R", "F444W"),
        (("f182m", None), "NRCA2", "MASKA210R", "F182M"),
        (("F250M", None), "NRCALONG", "MASKA335R", "F250M"),
        ((None, "210R"), "NRCA2", "MASKA210R", "F210M"),
        ((None, "MASKASWB"), "NRCA4", "MASKASWB", "F210M"),
        (("F460M", "masklwb"), "NRCALONG", "MASKALWB", "F460M"),
        (("F444W", "210R"), "NRCALONG", "MASKA210R", "F444W"),
        (("F212N", "LWB"), "NRCA4", "MASKALWB", "F212N"),
    ],
)
def test_filter_and_mask_decide_the_mode(asked, detector, coronmsk, filter_name):
    instrument, bandpass = choose_optics("nircam", *asked)
    assert instrument.metadata["detector"] == detector
    assert (bandpass.coronmsk, bandpass.name) == (coronmsk, filter_name)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("niriss", None, None), "instrument is 'niriss', expected one of nircam, miri-4qpm"),
        (
            ("nircam", None, "999R"),
            "mask is '999R', expected one of 335R, 210R, 430R, SWB, LWB for",
        ),
        (
            ("nircam", "F115W", "SWB"),
            "filter is 'F115W', expected one of F182M, F187N, F200W, F210M",
        ),
        (("nircam", "F322W2", "LWB"), "for instrument nircam with mask LWB"),
        (("miri-lyot", None, "335R"), "mask is '335R', expected none, as the filter decides it"),
    ],
)
def test_choices_that_do_not_exist(asked, says):
    with pytest.raises(ParameterError) as caught:
        choose_optics(*asked)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keywords", "centre"),
    [
        (ROUND | {"filter": "F444W"} | corner(492, 1502), (149.2, 173.6)),
        (ROUND | {"filter": "F444W", "subarray": "FULL"} | corner(1, 1), (640.2, 1674.6)),
        (ROUND | {"filter": "F444W", "subarray": "FULL"}, (640.2, 1674.6)),
        (ROUND | {"filter": "F335M", "coronmsk": None, "detector": None}, (149.2, 173.6)),
        (ROUND | {"filter": "F335M", "detector": "NRCA5", "pupil": None}, (149.2, 173.6)),
        (BAR | {"filter": "F250M"}, (255.9, 175.6)),
        (BAR | {"filter": "F444W"} | corner(1465, 1518), (129.1, 166.0)),
        (BAR | {"filter": "F250M", "subarray": "SUB400X256ALWB"}, (235.9, 144.8)),
        (BAR | {"filter": "F250M", "aperture": "NRCA5_MASKLWB_F460M"}, (149.2, 176.0)),
        (BAR | SW, (201.02, 125.49)),
        (BAR | SW | {"aperture": "NRCA4_400X256_MASKLWB_F444W"}, (50.54, 124.78)),
        (BAR | SW | {"coronmsk": None}, (201.02, 125.49)),
        (
            BAR
            | {"filter": "F410M", "subarray": "FULL", "aperture": "NRCA5_FULL_MASKLWB_F410M"}
            | corner(1, 1),
            (1630.7, 1683.7),
        ),
        (LYOT, (143.33, 166.88)),
        (LYOT | {"coronmsk": "N/A", "subarray": "MASKLYOT"}, (143.33, 166.88)),
        (ROUND | {"filter": "F444W", "pupil": "CLEAR"}, None),
        (ROUND | {"filter": "F444W", "detector": "NRCBLONG"}, None),
        (ROUND | {"filter": "F444W", "coronmsk": "MASKB335R"}, None),
        (ROUND | {"filter": "F150W"}, None),
        (LYOT | {"filter": "F1065C"}, None),
        ({"instrument": "NIRISS", "filter": "F444W"}, None),
        ({}, None),
    ],
)
def test_optics_of_keywords(keywords, centre):
    found = optics_of(ExposureMeta(**keywords))
    if centre is None:
        assert found is None
    else:
        assert found.mask_centre == pytest.approx(centre, abs=1e-6)
        assert found.bandpass.name == keywords["filter"]
        assert (found.instrument.bar is not None) == (keywords.get("pupil") == "MASKBAR")


@pytest.mark.parametrize(
    ("name", "subarray_corner"),
    [
        ("0003", "NRCA5_MASKLWB"),
        ("0019", "NRCA5_MASK335R"),
        ("0027", "NRCA5_MASK430R"),
        ("0049", "NRCA2_MASK210R"),
    ],
)
def test_subarrays_begin_where_real_files_say(name, subarray_corner, shared_data):
    header = fits.getheader(shared_data / "psfmask" / f"jwst_nircam_psfmask_{name}.fits")
    aperture = load_aperture(subarray_corner)
    assert aperture.corner == (header["SUBSTRT1"], header["SUBSTRT2"])
    assert aperture.shape == (header["SUBSIZE2"], header["SUBSIZE1"])
    mode = next(m for m in MODES if header["CORONMSK"].endswith(m.mask))
    axes = (mode.metadata["fastaxis"], mode.metadata["slowaxis"])
    assert axes == (header["FASTAXIS"], header["SLOWAXIS"])
    assert mode.metadata["detector"] == header["DETECTOR"]


def profile_of(image, centre, radii):
    """Mean of an image in rings of one pixel."""
    y, x = np.indices(image.shape)
    r = np.hypot(x - centre[0], y - centre[1])
    return np.array([image[np.abs(r - radius) <= 0.5].mean() for radius in radii])


@pytest.mark.parametrize(
    ("name", "mask", "bandpass"),
    [("0019", "335R", "F335M"), ("0027", "430R", "F335M"), ("0049", "210R", "F210M")],
)
def test_round_masks_transmit_what_real_psfmasks_say(name, mask, bandpass, shared_data):
    """Those files hold the transmission of the mask, at the centre of their array."""
    image = fits.getdata(shared_data / "psfmask" / f"jwst_nircam_psfmask_{name}.fits")
    instrument, chosen = choose_optics("nircam", bandpass, mask)
    radii = np.arange(2, 25)
    measured = profile_of(image, [(n - 1) / 2 for n in image.shape], radii)
    scale = np.sqrt(np.prod(load_aperture(chosen.aperture).scale))
    argument = 2.1001 * radii * scale / instrument.mask_radius
    expected = (1 - (2 * special.j1(argument) / argument) ** 2) ** 2
    np.testing.assert_allclose(measured, expected, atol=0.015)


def test_half_width_of_the_bar_is_that_of_a_real_psfmask(shared_data):
    image = fits.getdata(shared_data / "psfmask" / "jwst_nircam_psfmask_0003.fits")
    instrument, bandpass = choose_optics("nircam", "F335M", "LWB")
    aperture = load_aperture(bandpass.aperture)
    columns = np.arange(10, 315, 20)
    measured = (image[120:200, columns] < 0.5).sum(axis=0) / 2 * aperture.scale[1]
    x = (columns - aperture.centre_in(aperture.corner)[0]) * aperture.scale[0]
    one_pixel = aperture.scale[1]
    np.testing.assert_allclose(measured, bar_half_width(instrument.bar, x), atol=one_pixel)


@pytest.mark.parametrize("mode", MODES, ids=lambda m: f"{m.name} {m.mask} {m.metadata['detector']}")
def test_keywords_are_those_of_the_datamodels(mode):
    for bandpass in mode.filters.values():
        model = datamodels.CubeModel(strict_validation=True, pass_invalid_values=False)
        for key in ("name", "detector", "channel", "module", "pupil"):
            if key in mode.metadata:
                setattr(model.meta.instrument, key, mode.metadata[key])
        model.meta.instrument.filter = bandpass.name
        model.meta.instrument.coronagraph = bandpass.coronmsk
        model.meta.subarray.name = bandpass.subarray
        model.meta.exposure.type = mode.exp_type
        model.meta.exposure.readpatt = mode.metadata["readpatt"]
        model.validate()
    with pytest.raises(ValidationError):
        model.meta.instrument.coronagraph = "MASKA999R"


def test_star_of_real_exposures_is_at_the_mask(shared_data):
    path = next((shared_data / "aumic_f444w").glob("*_calints.fits"))
    found = optics_of(read_meta(path))
    assert found.instrument.mask == "335R" and found.bandpass.name == "F444W"
    assert np.hypot(*np.subtract(found.mask_centre, (150, 174))) < 1  # where its publisher put it


@pytest.mark.parametrize(
    ("instrument", "mask", "bandpass"),
    [
        ("nircam", "210R", "F182M"),
        ("nircam", "SWB", "F210M"),
        ("nircam", "LWB", "F250M"),
        ("nircam", "LWB", "F210M"),
        ("nircam", "430R", "F480M"),
        ("miri-4qpm", None, "F1550C"),
    ],
)
def test_a_simulated_exposure_leads_back_to_its_optics(instrument, mask, bandpass, tmp_path):
    made = simulate(
        tmp_path, instrument, 1, (40, 48), mask=mask, filter=bandpass, n_science=1,
        n_integrations=1, n_references=0,
    )  # fmt: skip
    found = optics_of(read_meta(Path(made.science[0])))
    chosen = choose_optics(instrument, bandpass, mask)
    assert found[:2] == chosen
    truth = json.loads(made.truth_json.read_text())
    assert found.mask_centre == pytest.approx(truth["mask_centre"], abs=1e-9)
