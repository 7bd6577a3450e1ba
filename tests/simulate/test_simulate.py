"""The simulator: reproducible, noise as ERR says, planets where the WCS says, valid files."""

import argparse
import json
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from stdatamodels.jwst import datamodels

from gpucoron.cli import main as cli
from gpucoron.cli.simulate import add_arguments
from gpucoron.errors import OutputError, ParameterError
from gpucoron.optics.instruments import MODES, load_aperture
from gpucoron.simulate import DEMO, LARGE, Options, simulate
from gpucoron.simulate.geometry import Window, _to_v2v3, aim
from gpucoron.simulate.wcs import build_gwcs
from tests.helpers import oracles


def counts(n_science, n_integrations, n_references, n_reference_integrations=1, **more):
    """Options of a simulation: its numbers of exposures and of integrations of each, and more."""
    science = {"n_science": n_science, "n_integrations": n_integrations}
    references = {"n_reference_integrations": n_reference_integrations}
    return science | references | {"n_references": n_references} | more


SMALL = counts(2, 2, 2, shape=(72, 80))
NOISELESS = {"noise": False, "cosmic_rays": False, "bad_pixels": False, "truth_scenes": True}
HDUS = "PRIMARY SCI ERR DQ AREA INT_TIMES VAR_POISSON VAR_RNOISE VAR_FLAT ASDF".split()


@pytest.fixture(scope="module")
def nircam(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("nircam"), **SMALL, seed=3, truth_scenes=True)


@pytest.fixture(scope="module", params=["miri-4qpm", "miri-lyot"])
def miri(request, tmp_path_factory):
    options = counts(1, 2, 1, seed=4, truth_scenes=True)
    return simulate(tmp_path_factory.mktemp("miri"), instrument=request.param, **options)


def root(path):
    return path.name.removesuffix("_calints.fits")


def clean_of(path):
    return np.load(path.with_name(f"{root(path)}_clean.npy"))


def gwcs_of(path):
    with datamodels.open(path) as model:
        return model.meta.wcs


def test_same_seed_same_bytes_other_seed_others(nircam, tmp_path):
    again = simulate(tmp_path / "a", **SMALL, seed=3)
    other = simulate(tmp_path / "b", **SMALL, seed=5)
    files = (made.science + made.psf for made in (nircam, again, other))
    for first, second, third in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert not np.array_equal(fits.getdata(first, "SCI"), fits.getdata(third, "SCI"))
    assert json.loads(nircam.asn.read_text()) == json.loads(again.asn.read_text())


@pytest.mark.parametrize(
    ("instrument", "mask"),
    [("nircam", None), ("miri-4qpm", None), ("miri-lyot", None), ("nircam", "SWB")],
)
def test_strict_datamodels_take_every_file(instrument, mask, tmp_path):
    made = simulate(tmp_path, instrument=instrument, mask=mask, **SMALL)
    for path in made.science + made.psf:
        with datamodels.open(path, strict_validation=True, pass_invalid_values=False) as model:
            assert isinstance(model, datamodels.CubeModel)
            model.validate()
            assert model.meta.wcs.available_frames == ["detector", "v2v3", "v2v3vacorr", "world"]
            assert model.meta.wcsinfo.s_region.startswith("POLYGON ICRS  ")
            assert len(model.int_times) == model.meta.exposure.nints == len(model.data)
            assert model.meta.exposure.psf_reference == (path in made.psf)
            if path == made.psf[0]:
                model.save(tmp_path / "again.fits")
        with fits.open(path) as hdus:
            assert [h.name for h in hdus] == HDUS
    with datamodels.open(made.psfmask, strict_validation=True) as mask:
        assert isinstance(mask, datamodels.PsfMaskModel)
        assert mask.data.shape == SMALL["shape"]


@pytest.mark.parametrize(
    ("instrument", "folder"), [("nircam", "nircam_small"), ("miri-4qpm", "miri_4qpm")]
)
def test_keywords_are_those_of_genuine_files(instrument, folder, shared_data, tmp_path):
    made = simulate(tmp_path, instrument=instrument, **SMALL)
    files = (shared_data / folder).glob("*_calints.fits")
    genuine = sorted(files, key=lambda p: fits.getval(p, "IS_PSF"))
    for ours, theirs in ((made.science[0], genuine[0]), (made.psf[0], genuine[-1])):
        with fits.open(ours) as a, fits.open(theirs) as b:
            for name in HDUS:
                assert not set(b[name].header) - set(a[name].header) - {""}
                if name not in ("PRIMARY", "INT_TIMES", "ASDF"):
                    assert a[name].data.dtype == b[name].data.dtype
            assert a["INT_TIMES"].data.dtype.names == b["INT_TIMES"].data.dtype.names


def test_asn_lists_the_files(nircam):
    asn = json.loads(nircam.asn.read_text())
    (product,) = asn["products"]
    assert asn["asn_type"] == "coron3"
    assert product["name"] == "jw09100-c1001_t001_nircam_f444w-maskrnd-sub320a335r"
    assert [m["exptype"] for m in product["members"]] == ["science"] * 2 + ["psf"] * 2
    names = [nircam.directory / m["expname"] for m in product["members"]]
    assert names == [*nircam.science, *nircam.psf]


def pulls(made, path):
    truth = np.load(made.truth)
    with fits.open(path) as hdus:
        data, err, dq = (hdus[n].data for n in ("SCI", "ERR", "DQ"))
        variances = sum(hdus[n].data for n in ("VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"))
        np.testing.assert_allclose(err, np.sqrt(variances), rtol=1e-6)
    packed = truth[f"cosmic_rays_{root(path)}"]
    hit = np.unpackbits(packed, axis=-1, count=data.shape[-1]).astype(bool)
    dark = (dq & (2048 | 4096)) != 0  # unsubtracted dark current is a fault, not noise
    good = np.isfinite(data) & ((dq & 1) == 0) & ~hit & ~dark
    return ((data - clean_of(path)) / err)[good], data, dq, hit


def test_err_is_the_noise(nircam):
    pull = np.concatenate([pulls(nircam, p)[0] for p in nircam.science + nircam.psf])
    assert pull.size > 25_000
    assert abs(pull.mean()) < 0.03
    assert abs(pull.std() - 1) < 0.02
    assert np.mean(np.abs(pull) > 5) < 1e-4


def test_err_is_the_noise_behind_miri_masks(miri):
    pull, _, dq, _ = pulls(miri, miri.science[0])
    assert abs(pull.mean()) < 0.03
    assert abs(pull.std() - 1) < 0.02
    assert np.all(dq[:, :, :4] & (512 | 1) == 513)
    assert 0.1 < np.mean(dq & 512 != 0) < 0.5


def test_defects_are_there_and_can_be_left_out(nircam, tmp_path):
    _, data, dq, hit = pulls(nircam, nircam.psf[0])
    assert hit.any()
    assert np.all(np.isnan(data[dq & 1 != 0]))
    assert np.isnan(data[:, -1]).all() and (dq[0, -1] & 1 == 0).any()  # an edge without a flag
    assert np.any(dq & 4)
    bare = simulate(tmp_path, **SMALL, **NOISELESS, seed=3)
    for path in bare.science:
        with fits.open(path) as hdus:
            np.testing.assert_array_equal(hdus["SCI"].data, clean_of(path))
            assert not hdus["DQ"].data.any()
    np.testing.assert_array_equal(clean_of(bare.science[0]), clean_of(nircam.science[0]))


def test_gwcs_puts_planets_where_their_light_is(tmp_path):
    options = NOISELESS | {"shape": (160, 160), "disk": False, "jitter_px": 0.0}
    options |= {"n_science": 2, "n_integrations": 1, "n_references": 0}
    options |= {"wavefront_nm": 0.0, "drift_nm": 0.0}
    planet = (3.0, 40.0, 1e-2)
    having = simulate(tmp_path / "with", planets=[planet], **options)
    lacking = simulate(tmp_path / "without", planets=[], **options)
    for a, b in zip(having.science, lacking.science, strict=True):
        light = clean_of(a).astype(float)[0] - clean_of(b)[0]
        x, y = gwcs_of(a).invert(having.planets[0].ra, having.planets[0].dec)
        assert having.planets[0].pixels[root(a)] == pytest.approx((x, y), abs=1e-6)
        row, column = np.indices(light.shape)
        dx, dy = column - x, row - y
        near = (np.abs(column - round(float(x))) <= 12) & (np.abs(row - round(float(y))) <= 12)
        weight = light * np.exp(-0.5 * (np.hypot(dx, dy) / 2.5) ** 2) * near
        for offset in (dx, dy):
            assert np.sum(weight * offset) / weight.sum() == pytest.approx(0, abs=0.01)
        assert light.sum() == pytest.approx(having.planets[0].flux_mjysr, rel=0.05)


def test_wcs_agree_with_each_other_and_the_pointing(nircam):
    rolls, stars = [], []
    for path in nircam.science:
        gwcs, header = gwcs_of(path), fits.getheader(path, "SCI")
        x, y = np.array([0.0, 40, 79]), np.array([0.0, 30, 71])
        ra, dec = gwcs(x, y, with_bounding_box=False)
        back = gwcs.invert(ra, dec, with_bounding_box=False)
        np.testing.assert_allclose(back, [x, y], atol=1e-5)
        sip = WCS(header, naxis=2).all_pix2world(x, y, 0)
        assert np.max(np.hypot((sip[0] - ra) * np.cos(np.deg2rad(dec)), sip[1] - dec)) < 6e-4 / 3600
        corners = np.array(header["S_REGION"].split()[2:], float).reshape(4, 2)
        edge = gwcs([-0.5, -0.5, 79.5, 79.5], [-0.5, 71.5, 71.5, -0.5], with_bounding_box=False)
        np.testing.assert_allclose(corners.T, edge, atol=2e-9)
        stars.append(gwcs.invert(*nircam.star))
        rolls.append(header["ROLL_REF"])
        seen = np.load(nircam.truth)[f"star_{root(path)}"]
        assert np.all(np.abs(seen - stars[-1]) < 0.06)  # jitter
    assert rolls[1] - rolls[0] == pytest.approx(10.0)


def test_gwcs_equals_plain_geometry_over_all_apertures():
    for name in {f.aperture for mode in MODES for f in mode.filters.values()}:
        window = Window.centred(load_aperture(name), None)
        pointing = aim(window, 10.0, 60.0, 200.0, window.centre)
        np.testing.assert_allclose(pointing.pixel_to_sky(*window.centre), (10, 60), atol=1e-11)
        x, y = np.array([5.0, 100, 250]), np.array([3.0, 150, 200])
        sky = pointing.pixel_to_sky(x, y)
        np.testing.assert_allclose(build_gwcs(pointing)(x, y), sky, atol=1e-11)
        np.testing.assert_allclose(pointing.sky_to_pixel(*sky), [x, y], atol=1e-7)


def test_siaf_numbers(shared_data):
    known = json.loads((shared_data / "siaf_apertures.json").read_text())["nircam"]
    window = Window.centred(load_aperture(known["aperture"]), None)
    assert list(window.corner) == known["corner_full"]
    x, y, v2, v3 = known["check"]
    found = _to_v2v3(window, x - 1, y - 1)
    np.testing.assert_allclose(found, (v2, v3), atol=1e-6)


@pytest.mark.parametrize(
    ("instrument", "shape"), [("nircam", (32, 32)), ("nircam", (101, 87)), ("miri-4qpm", (45, 130))]
)
def test_odd_shapes_and_uneven_exposures(instrument, shape, tmp_path):
    made = simulate(tmp_path, instrument=instrument, **counts(2, (3, 1), 1, 2, shape=shape))
    assert [fits.getdata(p, "SCI").shape for p in made.science] == [(3, *shape), (1, *shape)]
    mask = fits.getdata(made.psfmask)
    assert mask.shape == shape and mask.min() == 0 and mask.max() == 1


def test_bars_hide_a_strip_and_references_are_dithered_across(tmp_path):
    options = counts(1, 1, 5, shape=(96, 200), mask="LWB", filter="F410M", **NOISELESS)
    made = simulate(tmp_path, **options)
    truth = json.loads(made.truth_json.read_text())
    assert truth["options"]["mask"] == "LWB"
    psf = [e["dither_px"] for e in truth["exposures"] if e["exptype"] == "psf"]
    assert psf == [[0, 0], [0, 0.5], [0, -0.5], [0, 1.0], [0, -1.0]]
    mask, (x, y) = fits.getdata(made.psfmask), truth["mask_centre"]
    hidden = (mask < 0.5).sum(axis=0)[4:-4] - 6  # the edge of the frame is left out, too
    at_star = hidden[round(x) - 4] / 2 * 0.0631
    assert at_star == pytest.approx(4 * 4.1e-6 / 6.5 * 206265, abs=0.05)
    assert mask[round(y), 4:-4].max() == 0 and mask[round(y) + 20, 8:-8].min() == 1
    assert hidden[4] > hidden[-5] + 5  # wider towards lower x: see test_telescope
    light = clean_of(made.science[0])[0]
    above, along = light[round(y) + 10, round(x)], light[round(y), round(x) + 10]
    assert above > 2 * along


def test_references_are_brighter_and_dithered(nircam):
    truth = json.loads(nircam.truth_json.read_text())
    psf = [e for e in truth["exposures"] if e["exptype"] == "psf"]
    steps = np.diff([np.mean(e["star_xy_px"], axis=0) for e in psf], axis=0)
    assert 0.8 < np.hypot(*steps[0]) < 1.6
    bright = [np.median(clean_of(p)[0][20:50, 20:60]) for p in (nircam.science[0], nircam.psf[0])]
    assert bright[1] > 1.2 * bright[0]


def test_drift_is_slow_and_optical_states_repeat(tmp_path):
    options = {"n_optical_states": 2, "truth_scenes": True, "disk": False}
    made = simulate(tmp_path, **counts(1, 6, 1, 2, shape=(64, 64)), **options)
    scene = clean_of(made.science[0])
    np.testing.assert_array_equal(scene[0], scene[4])
    assert np.any(scene[0] != scene[1])
    assert np.abs(scene[0] - scene[1]).max() < 0.1 * scene.max()
    data = fits.getdata(made.science[0], "SCI")
    assert np.any(data[0] != data[4])


def test_klip_matters(tmp_path):
    """References take most of the starlight away, and aligned ones more than unaligned ones."""
    options = counts(1, 2, 9, shape=(112, 112), planets=[], disk=False)
    made = simulate(tmp_path, **options, **NOISELESS)
    truth = np.load(made.truth)
    star = truth[f"star_{root(made.science[0])}"][0]
    references, aligned = [], []
    for path in made.psf:
        place = truth[f"star_{root(path)}"][0]
        frame = clean_of(path)[0].astype(float)
        references.append(frame)
        aligned.append(oracles.fourier_shift(frame, (star - place)[::-1]))
    row, column = np.indices(frame.shape)
    radius = np.hypot(column - star[0], row - star[1])
    ring = (radius > 12) & (radius < 40)
    target = clean_of(made.science[0])[0].astype(float)[ring]
    left = {
        n: oracles.klip(target, np.array([r[ring] for r in stack]), 8)[0].std()
        for n, stack in (("aligned", aligned), ("as they are", references))
    }
    assert target.std() > 5 * left["aligned"]
    assert left["as they are"] > 1.3 * left["aligned"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"instrument": "wfc3"}, "instrument is 'wfc3', expected 'nircam' or"),
        ({"filter": "F115W"}, "filter is 'F115W', expected one of F250M, F277W, F300M"),
        ({"mask": "999R"}, "mask is '999R', expected one of 335R, 210R, 430R, SWB, LWB"),
        ({"mask": "swb", "filter": "F115W"}, "for instrument nircam with mask SWB"),
        ({"shape": (16, 64)}, "shape is (16, 64), expected two integers of 32 or more"),
        ({"shape": 64}, "shape is 64, expected two integers"),
        ({"shape": (400, 64)}, "expected at most (320, 320)"),
        ({"seed": -1}, "seed is -1"),
        ({"n_science": 0}, "n_science is 0"),
        ({"n_integrations": (1, 2, 3)}, "n_integrations is (1, 2, 3), expected an integer or 2"),
        ({"n_reference_integrations": 0}, "n_reference_integrations is 0"),
        ({"planets": [(1.0, 2.0)]}, "planets is [(1.0, 2.0)], expected (separation"),
        ({"planets": [(1.0, 2.0, float("nan"))]}, "planets is [(1.0, 2.0, nan)], expected (sep"),
        ({"drift_nm": -1}, "drift_nm is -1, expected a number of 0 or more"),
        ({"n_optical_states": 0}, "n_optical_states is 0"),
        ({"n_refernces": 3}, "no option 'n_refernces'; did you mean 'n_references'?"),
    ],
)
def test_impossible_options_say_so(options, says, tmp_path):
    with pytest.raises(ParameterError) as caught:
        simulate(tmp_path, **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_folder_errors(nircam, tmp_path):
    with pytest.raises(OutputError, match="exists; expected a new folder or overwrite=True"):
        simulate(nircam.directory, **SMALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        simulate(tmp_path / "file" / "below", **SMALL)


def test_command_line(tmp_path, capsys):
    words = (
        "--instrument NIRCam --filter f410m --shape 40x48 --science 1 --integrations 2 "
        "--references 1 --reference-integrations 1 --planet 0.9,30,1e-3 --no-disk --seed 7"
    )
    assert cli.main(["simulate", str(tmp_path / "a"), *words.split()]) == 0
    made = Path(capsys.readouterr().out.strip())
    options = {"filter": "F410M", "planets": [(0.9, 30, 1e-3)], "disk": False, "seed": 7}
    same = simulate(tmp_path / "b", **counts(1, 2, 1, shape=(40, 48)), **options)
    for path in (same.asn, same.psfmask, same.truth_json, *same.science, *same.psf):
        assert (made.parent / path.name).read_bytes() == path.read_bytes()
    assert cli.main(["simulate", str(tmp_path / "c"), "--shape", "big"]) == 2
    assert "shape is 'big', expected two integers" in capsys.readouterr().err


def test_defaults_and_presets():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = vars(parser.parse_args([]))
    assert Options(**given) == Options()  # the command line's are the library's
    for preset in (DEMO, LARGE):
        Options.from_keywords(**preset)
    assert Options(seed=str(2**60 + 1)).seed == Options(seed=2**60 + 1).seed == 2**60 + 1


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("ending", ["disk is full", "killed"])
def test_no_file_is_left_half_written(ending, tmp_path):
    folder = tmp_path / "made"
    pid = os.fork()
    if pid == 0:
        sys.stderr = open(tmp_path / "err", "w", buffering=1)
        if ending == "killed":
            os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 1024,) * 2)
        os._exit(cli.main(["simulate", str(folder), "--shape", "72x80"]))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left = [p.name for p in folder.iterdir()]
    if ending == "killed":
        assert code == -signal.SIGKILL and len(left) == 1
        assert left[0].startswith(".jw") and left[0].endswith(".part")
    else:
        assert code == 5 and left == []
        assert "_calints.fits: File too large" in (tmp_path / "err").read_text()
    made = simulate(folder, **SMALL)
    expected = [made.asn, made.psfmask, made.truth, made.truth_json, *made.science, *made.psf]
    assert sorted(folder.iterdir()) == sorted(expected)
