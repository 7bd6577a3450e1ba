"""Malicious and damaged ASDF and YAML: nothing executed, nothing fetched, nothing out of bounds."""

import bz2
import dataclasses
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucoron.core.parameters import Parameters
from gpucoron.errors import ExposureError
from gpucoron.io.asdf.extension import asdf_extension, write_asdf
from gpucoron.io.asdf.guard import UnsupportedAsdf, checked, open_asdf
from gpucoron.io.exposure_wcs import settle_wcs
from gpucoron.io.exposures import ExposureMeta, read_exposure
from gpucoron.io.wcs import OutputWcs, output_wcs, read_wcs
from tests.fuzz.bounds import TOKENS, bounded, fuzz, in_file, refused, refused_or
from tests.helpers.tiny_sets import SHAPE, simulated

HEAD = (
    b"#ASDF 1.0.0\n#ASDF_STANDARD 1.5.0\n%YAML 1.1\n%TAG ! tag:stsci.edu:asdf/\n"
    b"--- !core/asdf-1.1.0\n"
)
TAGS = [
    b"!!python/object/apply:os.system ['touch CANARY']",
    b"!!python/object/new:os.system ['touch CANARY']",
    b"!!python/name:os.system",
    b"!!python/module:antigravity",
    b'!!python/object/apply:builtins.exec [\'open("CANARY", "w")\']',
    b"!<tag:yaml.org,2002:python/object/apply:os.system> ['touch CANARY']",
    b"!<tag:yaml.org,2002:python/object/apply:subprocess.check_call> [[touch, CANARY]]",
]
LAUGHS = b"".join(
    b"l%d: &l%d [%s]\n" % (i, i, b", ".join([b"*l%d" % (i - 1)] * 9) if i else b"ha")
    for i in range(12)
)
MERGES = b"m0: &m0 {a: 1}\n" + b"".join(
    b"m%d: &m%d {<<: [%s]}\n" % (i, i, b", ".join([b"*m%d" % (i - 1)] * 9)) for i in range(1, 9)
)
ARRAY = b"a: !core/ndarray-1.0.0 {source: %s, datatype: uint8, byteorder: little, shape: [4]}\n"


def document(yaml, *blocks):
    return HEAD + yaml + b"...\n" + b"".join(blocks)


def block(data, *, kind=b"", flags=0, used=None, allocated=None, size=None, head=48):
    used = len(data) if used is None else used
    allocated = used if allocated is None else allocated
    size = len(data) if size is None else size
    fields = (head, flags, kind, allocated, used, size, b"")
    return b"\xd3BLK" + struct.pack(">HI4sQQQ16s", *fields) + data


def one_array(data, **claims):
    """An ASDF file with one array of 4 bytes, in a block that claims what it likes."""
    return document(ARRAY % b"0", block(data, **claims))


WORLD = (
    "!<tag:stsci.edu:gwcs/celestial_frame-1.2.0> {name: world, axes_order: [0, 1], axes_names: "
    "[lon, lat], unit: [!unit/unit-1.0.0 deg, !unit/unit-1.0.0 deg], reference_frame: "
    "!<tag:astropy.org:astropy/coordinates/frames/icrs-1.1.0> {frame_attributes: {}}}"
)


def with_transform(transform):
    """An ASDF file whose GWCS is `transform`."""
    step = "    - !<tag:stsci.edu:gwcs/step-1.3.0>\n"
    return document(
        f"meta:\n  wcs: &wcs !<tag:stsci.edu:gwcs/wcs-1.4.0>\n    name: ''\n    steps:\n{step}"
        f"      frame: !<tag:stsci.edu:gwcs/frame2d-1.2.0> {{name: a}}\n"
        f"      transform: {transform}\n{step}      frame: {WORLD}\n      transform: null\n"
        "wcs: *wcs\narray_shape: [5, 5]\n".encode(),
        block(b"abcd"),
    ).replace(b"STANDARD 1.5.0", b"STANDARD 1.6.0")


def nested(first, pattern):
    for i in range(40):
        first = f"&a{i + 1} " + pattern.format(first, f"*a{i}")
    return first


SHIFT = "!transform/shift-1.4.0 {offset: 0.0}"
SAME = f"!transform/concatenate-1.4.0 {{forward: [{SHIFT}, {SHIFT}]}}"
IDENTITY, COMPOSE = "!transform/identity-1.4.0", "!transform/compose-1.4.0"
POLYNOMIAL = "!transform/polynomial-1.3.0 {coefficients:"
BYTES = "!core/ndarray-1.1.0 {source: 0, datatype: uint8, byteorder: little"
TRANSFORMS = {
    "composed of itself": "&a !transform/compose-1.4.0 {forward: [*a, *a]}",
    "many by aliases": nested(
        f"&a0 {IDENTITY} {{n_dims: 2}}", f"{COMPOSE} {{{{forward: [{{}}, {{}}]}}}}"
    ),
    "many numbers by aliases": f"{POLYNOMIAL} {nested('&a0 [1, 2]', '[{}, {}]')}}}",
    "a polynomial of a million terms": f"{POLYNOMIAL} {BYTES}, shape: [1000, 1000]}}}}",
    "an array of strides 0": "!transform/affine-1.5.0 {translation: [0, 0], matrix: "
    f"{BYTES}, strides: [0, 0], shape: [100000, 100000]}}}}",
    "a billion axes": f"{IDENTITY} {{n_dims: 1000000000}}",
    "a billionth axis": "!transform/remap_axes-1.5.0 {mapping: [0, 1000000000]}",
    "numbers that hold themselves": f"{POLYNOMIAL} &a {{data: *a}}}}",
    "lists of aliases": f"!transform/remap_axes-1.5.0 {{n_inputs: &a [{'1, ' * 30_000}], "
    f"mapping: [{'*a, ' * 30_000}]}}",
    "no axes": "!transform/remap_axes-1.5.0 {mapping: []}",
    "an axis before the first": "!transform/remap_axes-1.5.0 {mapping: [0, -1]}",
    "a word for a number": "!transform/identity-1.4.0 {n_dims: two}",
    "no number": "!transform/shift-1.4.0 {offset: .nan}",
    "two numbers": "!transform/shift-1.4.0 {offset: [1, 2]}",
    "another version": "!transform/shift-9.4.0 {offset: 1}",
    "numbers for transforms": "!transform/compose-1.4.0 {forward: [1, 2]}",
    "a letter for transforms": "!transform/compose-1.4.0 {forward: x}",
    "a ragged matrix": "!transform/affine-1.5.0 {matrix: [[1, 2], [3]], translation: [0, 0]}",
    "no such block": f"{POLYNOMIAL} !core/ndarray-1.1.0 {{source: 7, datatype: float64, "
    "byteorder: little, shape: [2, 2]}}",
    "a number for a box": "!transform/identity-1.4.0 {n_dims: 2, bounding_box: 5}",
    **{text: text for text in ("null", "text", "[]", "{}", "*nothing")},
    "code": "!!python/object/apply:os.system ['exit 1']",
}


CHAIN = b"a0: &a0 !transform/shift-1.4.0 {offset: 1}\n" + b"".join(
    b"a%d: &a%d !transform/compose-1.4.0 {forward: [*a%d, *a0]}\n" % (i, i, i - 1)
    for i in range(1, 300)
)
BOMB = zlib.compress(bytes(10**8))
HOSTILE = {
    "a billion laughs": document(LAUGHS + b"meta: {wcs: *l11}\n"),
    "laughs by merging": document(MERGES + b"meta: {wcs: *m8}\n"),
    "a tree in itself": document(b"meta: &a\n  wcs: [*a, *a]\n"),
    "deep lists": document(b"meta: " + b"[" * 100_000 + b"\n"),
    "deep by aliases": document(CHAIN + b"meta: {wcs: *a299}\n"),
    "deep blocks": document(b"".join(b" " * i + b"a:\n" for i in range(3000))),
    "a long number": document(b"meta: {wcs: " + b"9" * 100_000 + b"}\n"),
    "a terabyte claimed": one_array(b"abcd", used=2**40),
    "2^63 bytes claimed": one_array(b"abcd", size=2**63 - 1, kind=b"zlib"),
    "2^64 - 1 allocated": document(ARRAY % b"0", block(b"abcd", allocated=2**64 - 1) * 3),
    "a zlib bomb": one_array(BOMB, kind=b"zlib", size=10**8),
    "a bzip2 bomb": one_array(bz2.compress(bytes(10**8)) * 8, kind=b"bzp2", size=4),
    "many bombs": document(ARRAY % b"0", block(BOMB, kind=b"zlib", size=10**8) * 9),
    "not zlib": one_array(b"abcd" * 9, kind=b"zlib", size=4),
    "lz4": one_array(b"abcd" * 9, kind=b"lz4", size=4),
    "a kind of its own": one_array(b"abcd", kind=b"\xff\x00a"),
    "a short head": one_array(b"abcd", head=2),
    "a head without end": one_array(b"abcd", head=65535),
    "another file": document(ARRAY % b"'file:///etc/passwd'"),
    "another address": document(ARRAY % b"'http://127.0.0.1:9/x.asdf'"),
    "another file by an alias": document(
        b"b: {source: &s 'file:///etc/passwd'}\n"
        b"a: !core/ndarray-1.0.0 {source: *s, datatype: uint8, shape: [4]}\n"
    ),
    "a reference": document(b"meta: {wcs: {$ref: 'file:///etc/passwd#/a'}}\n"),
    "an array of terabytes": one_array(b"abcd").replace(b"[4]", b"[1099511627776]"),
    "no end": HEAD + b"meta: {}\n",
    "nothing": b"",
    "zeros": bytes(5000),
    "not text": document(b"meta: \xff\xfe\n"),
}


@pytest.fixture(autouse=True, scope="module")
def _loaded(tmp_path_factory):
    """What asdf and gwcs load once is no cost of a hostile file."""
    asdf_extension(_good().asdf_bytes, [], {})
    folder = tmp_path_factory.mktemp("loaded")
    _grid(in_file(folder, PLANE, "w.asdf"))
    Parameters.from_sources([in_file(folder, PARS, "p.asdf")])


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name, tmp_path, caplog):
    content = HOSTILE[name]
    simulated()  # not within the time limit
    for reading in (
        lambda: read_wcs(content, "x.fits"),
        lambda: Parameters.from_sources([in_file(tmp_path, content or b"?", "p.asdf")]),
        lambda: _grid(in_file(tmp_path, content, "w.asdf")),
    ):
        refused(reading)
    with bounded():  # without what cannot be read; the pixels matter
        made = asdf_extension(content, [], {"a": 1})
    assert made.startswith(b"#ASDF") and len(made) < 200_000


@pytest.mark.parametrize("name", TRANSFORMS)
def test_hostile_transforms(name, tmp_path):
    content = with_transform(TRANSFORMS[name])
    refused(read_wcs, content, "x.fits")
    refused(_grid, in_file(tmp_path, content, "w.asdf"))


def test_an_honest_transform():
    """The same file is read, so that what is refused above is the transform."""
    wcs = read_wcs(with_transform(SAME), "x.fits")
    assert wcs.pixel_to_sky(3.0, 4.0) == (3.0, 4.0)


def test_as_many_transforms_as_are_allowed():
    """Take a bounded time; an instrument has some fifty."""
    many = SAME
    for _ in range(9):
        many = f"!transform/compose-1.4.0 {{forward: [{many}, {many}]}}"
    with bounded():
        assert read_wcs(with_transform(many), "x").pixel_to_sky(3.0, 4.0) == (3.0, 4.0)


def _grid(path):
    good = read_wcs(_good().asdf_bytes, "x")
    return output_wcs([good], [ExposureMeta()], [SHAPE], output_wcs_file=path)


def _good():
    return read_exposure(simulated().made.science[1], "science", pixels=False)


PLACES = [
    *(b"meta: {wcs: %s}\n", b"meta: {a: %s}\n", b"a: %s\n", b"history: {extensions: [%s]}\n"),
    b"asdf_library: %s\n",
]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_executed(tag, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = document(place % tag)
    refused_or(read_wcs, content, "x.fits")
    refused_or(Parameters.from_sources, [in_file(tmp_path, content, "p.asdf")])
    refused_or(_grid, in_file(tmp_path, content, "w.asdf"))
    with bounded():
        asdf_extension(content, [], {})
        asdf_extension(content.replace(b"meta: {", b"meta:\n  x: {"), [], {})
    assert not (tmp_path / "CANARY").exists()


def test_the_canary_can_sing(tmp_path, monkeypatch):
    """The same texts do harm where YAML is read without care, so that silence means something."""
    import yaml

    monkeypatch.chdir(tmp_path)
    yaml.unsafe_load(TAGS[0])
    assert (tmp_path / "CANARY").exists()


def test_what_is_checked_is_what_is_read():
    """An end of the text, or a block, that asdf does not see there would be a way round."""
    inner = document(ARRAY % b"0", block(b"abcd"))
    for content in (
        inner.replace(b"...\n", b"...\r\n"),
        inner.replace(b"...\n", b"...\njunk"),
        inner + b"#ASDF BLOCK INDEX\n%YAML 1.1\n---\n[9999]\n...\n",
    ):
        with open_asdf(content) as tree:
            assert bytes(np.asarray(tree["a"])) == b"abcd"
    with pytest.raises(UnsupportedAsdf):
        checked(HEAD + b"a: 1\n")


# ---- mutations


NASTY = [
    *b"null,~,[],{},-1,0,1e400,.nan,.inf".split(b","),
    b"9" * 30,
    *(
        b"'',2147483648,&a,*a,*id001,!!python/name:os.system,[[[[]]]],<<,true,1:60:60,2020-01-01,"
        b"!!binary aGk=,!core/ndarray-1.0.0,-,shape,source,x,y,!transform/identity-1.2.0,degree,"
        b"\x00,\xe9,{,],',\",#,? ,|,%,@,0x7fffffff,0o17,1_000"
    ).split(b","),
]


@st.composite
def damaged(draw, original):
    """Draw an ASDF file with some words replaced, some bytes changed, or its end gone."""
    end = original.find(b"\n...")
    words = list(TOKENS.finditer(original, 0, end))
    content = original
    for _ in range(draw(st.integers(1, 3))):
        word = words[draw(st.integers(0, len(words) - 1))]
        new = draw(st.sampled_from(NASTY) | st.binary(max_size=6))
        content = content[: word.start()] + new + content[word.end() :]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(content)))
        changed = content[:at] + draw(st.binary(max_size=8)) + content[at + 8 :]
        content = draw(st.sampled_from([content[:at], changed]))
    return content


_GRID = (20.0, 18.0), (150.2, -30.4), (1e-5, 1e-5), ((-1.0, 0.0), (0.0, 1.0)), 0.036
PLANE = write_asdf({"wcs": OutputWcs(SHAPE, *_GRID).to_gwcs()})


@given(data=st.data())
@fuzz(60)
def test_a_wcs(data):
    good = _good()
    content = data.draw(damaged(good.asdf_bytes))
    wcs = refused_or(read_wcs, content, "x.fits")
    if wcs is not None:
        refused_or(settle_wcs, dataclasses.replace(good, asdf_bytes=content))
        for meta in (good.meta, ExposureMeta()):
            refused_or(output_wcs, [wcs], [meta], [SHAPE])
        refused_or(wcs.pixel_to_sky, np.arange(3.0), np.arange(3.0))
        refused_or(wcs.sky_to_pixel, np.arange(3.0), np.arange(3.0))
    with bounded():
        links = [("data", "SCI", np.dtype("f4"), (2, 3, 4))]
        asdf_extension(content, links, {"target": {"ra": 1.0}})


@given(data=st.data())
@fuzz(10)
def test_an_output_wcs_file(data, tmp_path_factory):
    content = data.draw(damaged(PLANE))
    path = in_file(tmp_path_factory.getbasetemp(), content, "w.asdf")
    found = refused_or(_grid, path)
    if found is not None:
        assert max(found.shape) <= 50_000


PARS = document(
    b"class: jwst.pipeline.calwebb_coron3.Coron3Pipeline\nname: a\nparameters: {skip: false, "
    b"pre_hooks: [], save_results: true}\nsteps:\n- class: jwst.coron.KlipStep\n  name: klip\n"
    b"  parameters: {truncate: 5, skip: false}\n- class: jwst.resample.ResampleStep\n  name: b\n"
    b"  parameters: {pixfrac: 1.0, kernel: square, crpix: [1, 2], fillval: NAN}\n"
)


@given(data=st.data())
@fuzz(40)
def test_parameter_files_in_asdf(data, tmp_path_factory):
    content = data.draw(damaged(PARS))
    path = in_file(tmp_path_factory.getbasetemp(), content, "p.asdf")
    refused_or(Parameters.from_sources, [path])


@pytest.mark.parametrize("device", ["/dev/zero", "fifo"])
def test_endless_files(device, tmp_path):
    import os

    path = tmp_path / "fifo"
    os.mkfifo(path)
    path = str(path) if device == "fifo" else device
    for reading in (
        lambda: Parameters.from_sources([path]),
        lambda: _grid(path),
        lambda: read_exposure(path, "psf"),
    ):
        refused(reading, seconds=5, match="is a pipe, a device or the like")


def test_an_exposure_error_is_one():
    problem = "x.fits: the ASDF extension cannot be read"
    refused(read_wcs, HOSTILE["a billion laughs"], "x.fits", error=ExposureError, match=problem)
