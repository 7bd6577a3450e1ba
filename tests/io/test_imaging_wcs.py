"""The WCS evaluated without asdf and gwcs, against gwcs."""

import io
import logging
import subprocess
import sys
import warnings

import asdf
import gwcs
import numpy as np
import pytest
import yaml
from astropy import coordinates
from astropy import units as u
from astropy.modeling import bind_bounding_box, models
from gwcs import coordinate_frames as cf
from gwcs.geometry import CartesianToSpherical, SphericalToCartesian

from gpucoron.errors import ExposureError
from gpucoron.io.asdf_nodes import TooDeep, Unusual, array, blocks, check_yaml, read_nodes
from gpucoron.io.asdf_tree import wcs_blob
from gpucoron.io.exposures import read_exposure
from gpucoron.io.imaging_wcs import read_imaging_wcs
from gpucoron.io.transforms import NoInverse
from gpucoron.io.wcs import _wcs_document, read_wcs

SETS = ("nircam_small", "miri_4qpm", "aumic_f444w", "awkward")


def same_as_gwcs(blob, shape=(320, 320)):
    """Compare with gwcs on a grid over and round the image, to the last bit; return the WCS."""
    ours = read_imaging_wcs(_wcs_document(blob))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with asdf.open(io.BytesIO(blob), memmap=False) as file:
            theirs = file["meta"]["wcs"]
        y, x = np.mgrid[-20 : shape[0] + 20 : 7.3, -20 : shape[1] + 20 : 7.7]
        np.testing.assert_array_equal(ours.pixel_to_sky(x, y), theirs(x, y))
        sky = theirs(x, y, with_bounding_box=False)
        np.testing.assert_array_equal(ours.pixel_to_sky(x, y, everywhere=True), sky)
        try:
            back = theirs.backward_transform(*sky)
        except NotImplementedError:
            with pytest.raises(NoInverse):
                ours.sky_to_pixel(*sky)
        else:
            np.testing.assert_array_equal(ours.sky_to_pixel(*sky), back)
            one = [v[3, 4] for v in sky]
            np.testing.assert_array_equal(
                np.ravel(ours.sky_to_pixel(*one)), np.ravel(theirs.backward_transform(*one))
            )
    box = theirs.bounding_box
    assert ours.box == (None if box is None else tuple(box.bounding_box(order="F")))
    return ours


@pytest.mark.parametrize("name", SETS)
def test_every_exposure_of_the_shared_sets(shared_data, name):
    for path in sorted((shared_data / name).glob("*calints.fits")):
        same_as_gwcs(read_exposure(path, "science", pixels=False).asdf_bytes)


def test_simulated_apertures():
    from gpucoron.optics.instruments import INSTRUMENTS, load_aperture
    from gpucoron.simulate.geometry import Window, aim
    from gpucoron.simulate.wcs import build_gwcs

    for instrument in INSTRUMENTS.values():
        for aperture in {bandpass.aperture for bandpass in instrument.filters.values()}:
            window = Window.centred(load_aperture(aperture), None)
            pointing = aim(window, 10.0, 60.0, 200.0, window.centre)
            same_as_gwcs(wcs_blob(build_gwcs(pointing)), window.shape)


FRAMES = {
    "detector": cf.Frame2D(name="detector", axes_order=(0, 1), unit=(u.pix, u.pix)),
    "v2v3": cf.Frame2D(name="v2v3", axes_order=(0, 1), unit=(u.arcsec, u.arcsec)),
    "world": cf.CelestialFrame(reference_frame=coordinates.ICRS(), name="world"),
}
SPHERE = (
    models.Scale(1 / 3600) & models.Scale(1 / 3600)
    | SphericalToCartesian(wrap_lon_at=180)
    | models.RotationSequence3D([0.1, -0.1, 30.0, -40.0, -60.0], axes_order="zyxyz")
    | CartesianToSpherical(wrap_lon_at=360)
)


def bent(degree=3, **ranges):
    names = [f"c{i}_{j}" for i in range(degree + 1) for j in range(degree + 1 - i)]
    rng = np.random.default_rng(degree)
    both = [
        models.Polynomial2D(degree, **ranges, **dict(zip(names, c, strict=True)))
        for c in rng.normal(0, 1e-2, (2, len(names)))
    ]
    return models.Mapping((0, 1, 0, 1)) | both[0] & both[1]


def blob_of(first, second=SPHERE, frames=("detector", "v2v3", "world"), **attributes):
    steps = [(FRAMES[frames[0]], first), (FRAMES[frames[1]], second), (FRAMES[frames[2]], None)]
    wcs = gwcs.WCS(steps)
    for name, value in attributes.items():
        setattr(wcs, name, value)
    return wcs_blob(wcs)


BOX = ((-0.5, 99.5), (3.25, 200.5))
SHIFTS = models.Shift(-3.5) & models.Shift(7.25)


@pytest.mark.parametrize(
    "first",
    [
        SHIFTS,
        SHIFTS | bent(),
        bent(0),
        bent(1),
        bent(7),
        bent(2, x_domain=(-3, 100), y_domain=(0, 7), x_window=(-2, 2)),
        models.Identity(2),
        models.Mapping((1, 0)) | models.Scale(2) & models.Identity(1),
        models.AffineTransformation2D([[1.1, 0.2], [-0.3, 0.9]], [4, -5]),
        models.Const1D(3.0) & models.Identity(1),
    ],
)
def test_transforms(first):
    same_as_gwcs(blob_of(first))


def test_bounding_boxes():
    ours = same_as_gwcs(blob_of(SHIFTS | bent(), bounding_box=BOX))
    assert ours.box == BOX
    inner = SHIFTS.copy()
    bind_bounding_box(inner, ((0, 5), (0, 6)), order="F")
    same_as_gwcs(blob_of(inner | bent(), bounding_box=BOX))
    outside = ours.pixel_to_sky(-9.0, 0.0)
    assert np.isnan(outside).all() and np.shape(outside[0]) == ()
    assert np.isnan(ours.pixel_to_sky(np.nan, 5.0)).all()


def test_old_bounding_boxes_are_lists_y_first(shared_data):
    path = next((shared_data / "aumic_f444w").glob("*calints.fits"))
    blob = read_exposure(path, "science", pixels=False).asdf_bytes
    begin = blob.index(b"        bounding_box:")
    end = blob.index(b"        forward:", begin)
    text = b"        bounding_box:\n        - [-0.5, 99.5]\n        - [3.5, 200.0]\n"
    assert same_as_gwcs(blob[:begin] + text + blob[end:]).box == ((3.5, 200.0), (-0.5, 99.5))


def test_poles_and_wrap():
    scale = models.Scale(3600.0) & models.Scale(3600.0)
    same_as_gwcs(blob_of(scale, SPHERE), shape=(100, 400))
    straight = (
        SphericalToCartesian(wrap_lon_at=180)
        | models.RotationSequence3D([0.0, 0.0], axes_order="zx")
        | CartesianToSpherical(wrap_lon_at=180)
        | SHIFTS
    )
    ours = same_as_gwcs(blob_of(models.Identity(2), straight), shape=(90, 360))
    assert ours.pixel_to_sky(10.0, 90.0)[1] == 90.0 + 7.25  # the pole, shifted


@pytest.mark.parametrize(
    "first",
    [
        models.Polynomial1D(1, c0=1, c1=2) & models.Identity(1),
        models.Pix2Sky_TAN(),
        models.Shift(1 * u.pix) & models.Shift(2 * u.pix),
        models.Scale(1) & models.Sine1D(),
        models.Shift(1) + models.Shift(2) & models.Identity(1),
        models.Rotation2D(30.0),
    ],
)
def test_anything_else_goes_to_gwcs(first, caplog):
    blob = blob_of(first)
    with pytest.raises(Unusual):
        read_imaging_wcs(_wcs_document(blob))
    with caplog.at_level(logging.DEBUG, logger="gpucoron"):
        wcs = read_wcs(blob, "x.fits")
    assert "a WCS that needs asdf and gwcs" in caplog.text
    if getattr(first, "uses_quantity", False):
        return
    np.testing.assert_array_equal(wcs.pixel_to_sky(0.5, 0.25), wcs.gwcs(0.5, 0.25))
    assert wcs.box((10, 20)) == ((-0.5, 19.5), (-0.5, 9.5))


def test_compressed_blocks_go_to_gwcs(tmp_path):
    wcs = gwcs.WCS([(FRAMES["detector"], bent() | SPHERE), (FRAMES["world"], None)])
    buffer = io.BytesIO()
    asdf.AsdfFile({"meta": {"wcs": wcs}}).write_to(buffer, all_array_compression="zlib")
    with pytest.raises(Unusual, match="compressed"):
        read_imaging_wcs(buffer.getvalue())
    np.testing.assert_allclose(read_wcs(buffer.getvalue(), "x").pixel_to_sky(1.0, 2.0), wcs(1, 2))


def test_no_inverse(monkeypatch):
    """Such a WCS is for gwcs to invert."""
    wcs = read_wcs(blob_of(bent()), "x")
    with pytest.raises(NoInverse):
        wcs._imaging.sky_to_pixel(1.0, 2.0)
    monkeypatch.setattr(gwcs.WCS, "invert", lambda self, *sky, **_: sky)
    assert wcs.sky_to_pixel(3.0, 4.0) == (3.0, 4.0)


def test_singular_transforms_have_no_inverse():
    for first in (
        models.AffineTransformation2D([[1, 1], [1, 1]], [4, -5]),
        models.Scale(0.0) & models.Identity(1),
    ):
        ours = read_imaging_wcs(_wcs_document(blob_of(first)))
        with pytest.raises(NoInverse):
            ours.sky_to_pixel(1.0, 2.0)


# ---- files that mean harm

HEAD = (
    "#ASDF 1.0.0\n#ASDF_STANDARD 1.6.0\n%YAML 1.1\n%TAG ! tag:stsci.edu:asdf/\n"
    "--- !core/asdf-1.1.0\n"
)


def document(transform, extra=""):
    frame = "frame: !<tag:stsci.edu:gwcs/frame2d-1.2.0> {name: a}"
    return (
        f"{HEAD}meta:\n  wcs: !<tag:stsci.edu:gwcs/wcs-1.4.0>\n    name: ''\n    steps:\n"
        f"    - !<tag:stsci.edu:gwcs/step-1.3.0>\n      {frame}\n      transform: {transform}\n"
        f"    - !<tag:stsci.edu:gwcs/step-1.3.0>\n      {frame}\n      transform: null\n"
        f"{extra}...\n"
    ).encode()


def test_deep_nesting_is_refused():
    """It would overflow the C stack of libyaml's composer, that is, kill the process."""
    for depth in (300, 100_000):
        for opening in ("[", "{a: "):
            with pytest.raises(ExposureError, match="levels of nesting"):
                read_wcs(document(opening * depth), "x.fits")


def test_deep_nesting_has_our_words_whatever_the_parser_says(monkeypatch):
    def parse(*_, **__):
        raise yaml.YAMLError("any words")

    monkeypatch.setattr(yaml, "parse", parse)
    for text in ("[" * 300, "{a: " * 300, b"[" * 300):
        with pytest.raises(TooDeep, match="levels of nesting"):
            read_nodes(text)
        with pytest.raises(TooDeep, match="levels of nesting"):
            check_yaml(text)
    for text in ("[1, 2", "[]" * 300, "", b""):
        with pytest.raises(Unusual):
            read_nodes(text)


def test_aliases_that_multiply_are_refused():
    bomb = "&a0 !transform/identity-1.4.0 {n_dims: 2}"
    for i in range(40):
        bomb = f"&a{i + 1} !transform/compose-1.4.0 {{forward: [{bomb}, *a{i}]}}"
    with pytest.raises(ExposureError, match="more than 5000 transforms"):
        read_wcs(document(bomb), "x.fits")
    numbers = "&n0 [1, 2]"
    for i in range(40):
        numbers = f"&n{i + 1} [{numbers}, *n{i}]"
    polynomial = f"!transform/polynomial-1.3.0 {{coefficients: {numbers}}}"
    with pytest.raises(ExposureError, match="more than 10000 numbers"):
        read_wcs(document(polynomial), "x.fits")


@pytest.mark.parametrize(
    "transform",
    [
        "!!python/object/apply:os.system ['exit 1']",
        "!<tag:yaml.org,2002:python/name:os.system> ''",
        "null",
        "text",
        "[]",
        "{}",
        "*nothing",
        "!transform/shift-1.4.0 {offset: .nan}",
        "!transform/shift-1.4.0 {offset: [1, 2]}",
        "!transform/shift-9.4.0 {offset: 1}",
        "!transform/compose-1.4.0 {forward: [1, 2]}",
        "!transform/compose-1.4.0 {forward: x}",
        "!transform/remap_axes-1.5.0 {mapping: []}",
        "!transform/remap_axes-1.5.0 {mapping: [0, -1]}",
        "!transform/remap_axes-1.5.0 {mapping: [0, 1000000000]}",
        "!transform/identity-1.4.0 {n_dims: 1000000000}",
        "!transform/identity-1.4.0 {n_dims: two}",
        "!transform/affine-1.5.0 {matrix: [[1, 2], [3]], translation: [0, 0]}",
        "!transform/polynomial-1.3.0 {coefficients: !core/ndarray-1.1.0 {source: 7, datatype: "
        "float64, byteorder: little, shape: [2, 2]}}",
        "!transform/identity-1.4.0 {n_dims: 2, bounding_box: 5}",
        "!transform/identity-1.4.0 {n_dims: 2, inputs: x, outputs: [x, y]}",
        "&a !transform/compose-1.4.0 {forward: [*a, *a]}",
    ],
)
def test_what_makes_no_sense_is_unusual(transform):
    with pytest.raises(Unusual):
        read_imaging_wcs(document(transform))


@pytest.mark.parametrize(
    "entries",
    [
        "source: 0, datatype: float64, byteorder: little, shape: [1000000000, 1000000000]",
        "source: 0, datatype: float64, byteorder: little, shape: [-1]",
        "source: -1, datatype: float64, byteorder: little, shape: [1]",
        "source: 0.5, datatype: float64, byteorder: little, shape: [1]",
        "source: 0, datatype: float64, byteorder: little, shape: [2], offset: 1",
        "source: 0, datatype: complex128, byteorder: little, shape: [1]",
        "source: 0, datatype: float64, byteorder: middle, shape: [1]",
        "source: 0, datatype: float64, byteorder: little, shape: [1], strides: [8]",
        "source: 0, datatype: float64, shape: [1]",
        "source: 0",
    ],
)
def test_arrays_that_lie(entries):
    node = read_nodes(f"%TAG ! tag:stsci.edu:asdf/\n---\n!core/ndarray-1.1.0 {{{entries}}}")
    with pytest.raises(Unusual):
        array(node, [memoryview(bytes(16))])


def test_arrays_as_asdf_reads_them():
    rng = np.random.default_rng(2)
    values = {
        "a": rng.normal(size=(3, 4)),
        "b": np.arange(5, dtype=">i2"),
        "c": rng.normal(size=3).astype("f4"),
        "d": np.arange(4, dtype="u1"),
    }
    buffer = io.BytesIO()
    asdf.AsdfFile(values).write_to(buffer)
    text, _, binary = buffer.getvalue().partition(b"\n...\n")
    tree = read_nodes(text + b"\n...\n")
    for name, value in values.items():
        found = array(tree.get(name), blocks(binary))
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, value)


def test_cut_blocks():
    _, _, binary = wcs_blob(
        gwcs.WCS([(FRAMES["detector"], bent() | SPHERE), (FRAMES["world"], None)])
    ).partition(b"\n...\n")
    assert len(blocks(binary)) == 2
    for size in (5, 30, 60, 100):
        with pytest.raises(Unusual, match="cut short"):
            blocks(binary[:size])


def test_keys_twice_and_depth():
    with pytest.raises(Unusual):
        read_nodes("{a: 1, a: 2}")
    with pytest.raises(TooDeep):
        read_nodes("[" * 250 + "]" * 250)


def test_a_run_imports_neither_asdf_nor_gwcs(shared_data):
    path = next((shared_data / "nircam_small").glob("*calints.fits"))
    code = (
        "import sys; from gpucoron.io.exposures import read_exposure;"
        "from gpucoron.io.wcs import read_wcs, output_wcs, pixel_map;"
        f"e = read_exposure({str(path)!r}, 'science'); w = read_wcs(e.asdf_bytes, 'x');"
        "o = output_wcs([w], [e.meta], [e.shape]); pixel_map(w, o, e.shape);"
        "print([m for m in ('asdf', 'gwcs', 'stdatamodels') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
