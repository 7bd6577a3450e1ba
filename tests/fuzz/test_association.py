"""Associations that nobody should write: refused in one line, or read within the folder."""

import copy
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucoron.errors import AssociationError
from gpucoron.io.association import read_association
from gpucoron.io.exposures import ExposureMeta
from gpucoron.io.names import exposure_root
from gpucoron.io.product_naming import product_names
from gpucoron.io.products import product_path
from tests.fuzz.bounds import fuzz, one_line, refused, refused_or
from tests.helpers import makers

FILES = ["a_calints.fits", "b_calints.fits", "c_calints.fits"]
GOOD = {
    **{"asn_type": "coron3", "asn_id": "c1001", "asn_pool": "pool", "program": "9100"},
    "target": "1",
    "products": [makers.product(zip(FILES, ("science", "psf", "psf"), strict=True), "jw09100")],
}
NAMES = [
    *(
        "../outside_calints.fits|/etc/passwd|a_calints.fits/../b_calints.fits|..|.|/|"
        "fifo_calints.fits|folder|link_calints.fits|loop_calints.fits|/dev/zero|/dev/stdin|"
        "A_CALINTS.FITS|a_calints.fits\x00|a\nb|\x1b[31mred|\ud800|\xe9_cal.fits"
    ).split("|"),
    "x" * 5000,
    *(
        "_calints.fits|.fits|~/x|$HOME|file:///etc/passwd|http://localhost/x|a_calints.fits |"
        " b_calints.fits|c_cal.fits|con|\u202egnp.stif|"
    ).split("|"),
]
texts = st.sampled_from(NAMES) | st.text(max_size=20)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
keys = st.sampled_from("members name expname exptype products asn_id".split())
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
exptypes = st.sampled_from(["science", "psf", "PSF ", "target_acq", "\n", "x" * 3000])
members = st.fixed_dictionaries({"expname": texts | st.sampled_from(FILES), "exptype": exptypes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of members, and of things that are none."""
    folder = tmp_path_factory.mktemp("asn") / "in"
    folder.mkdir()
    others = "c_cal.fits é_cal.fits A_CALINTS.FITS _calints.fits .fits ../outside_calints.fits"
    for name in (*FILES, *others.split()):
        (folder / name).write_bytes(b"SIMPLE  =")
    os.mkfifo(folder / "fifo_calints.fits")
    (folder / "folder").mkdir()
    (folder / "link_calints.fits").symlink_to("a_calints.fits")
    (folder / "loop_calints.fits").symlink_to("loop_calints.fits")
    return folder


@st.composite
def tables(draw):
    """Draw an association with some of its parts replaced."""
    table = copy.deepcopy(GOOD)
    product = table["products"][0]
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["top", "product", "member", "members", "products"]))
        if kind == "top":
            table[draw(st.sampled_from([*table, "other"]))] = draw(anything)
        elif kind == "product":
            product[draw(st.sampled_from(["name", "members"]))] = draw(anything)
        elif kind == "products" and isinstance(table.get("products"), list):
            table["products"].append(copy.deepcopy(product) | {"name": draw(texts)})
        elif kind == "members":
            product["members"] = draw(st.lists(members, max_size=6))
        elif isinstance(product["members"], list):
            for member in product["members"]:
                if isinstance(member, dict):
                    member[draw(st.sampled_from(["expname", "exptype"]))] = draw(texts)
                    break
    return table


def _check(path, out, shown):
    shown.clear()
    association = refused_or(read_association, path)
    if association is None:
        return
    for record in shown.records:
        one_line(record.getMessage())
    meta = ExposureMeta(target="../../x", instrument="a/b", filter="\0", program="..")
    names = refused_or(product_names, association, [meta] * len(association.products)) or ()
    for product, name in zip(association.products, names, strict=False):
        assert product.science and product.psf
        for member in (*product.science, *product.psf):
            assert os.path.isfile(member.path) and not os.path.islink(member.path / "x")
            _inside(out, exposure_root(member.path), association.asn_id, "psfalign")
        _inside(out, name, association.asn_id, "psfstack")


def _inside(out, name, asn_id, suffix):
    """Assert that a product goes right into the output folder, under a name that can be used."""
    path = refused_or(product_path, out, name, asn_id, suffix)
    if path is not None:
        assert Path(os.path.abspath(path)).parent == out
        assert path.name.isprintable() and len(os.fsencode(path.name)) < 230


@given(table=tables())
@fuzz(250)
def test_tables(table, folder, shown):
    path = folder / "x_asn.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    _check(path, folder.parent / "out", shown)


codings = st.sampled_from("utf-8 utf-8-sig utf-16 utf-32-le latin1".split())
changes = st.tuples(codings, tables(), st.integers(0, 400), st.binary(max_size=5))


@given(content=st.binary(max_size=200) | changes, name=st.sampled_from(["y_asn.json", "y.yaml"]))
@fuzz(150)
def test_bytes(content, name, folder, shown):
    if isinstance(content, tuple):
        coding, table, at, more = content
        whole = json.dumps(table, ensure_ascii=False).encode(coding, "replace")
        content = whole[:at] + more + whole[at + len(more) :]
    path = folder / name
    path.write_bytes(content)
    _check(path, folder.parent / "out", shown)


def listing(*products):
    return json.dumps({"products": products}).encode()


HOSTILE = {
    "deep": b'{"products": ' + b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "long number": b'{"products": ' + b"9" * 1_000_000 + b"}",
    "many keys": json.dumps({f"k{i}": 1 for i in range(200_000)}).encode(),
    "many members": listing(makers.product([(f"m{i}.fits", "psf") for i in range(50_000)], "a")),
    "many equal members": listing(makers.product([(FILES[0], "psf")] * 50_000, "a")),
    "many products": listing(*(GOOD["products"][0] | {"name": f"p{i}"} for i in range(5_000))),
    "not a number": b'{"products": NaN}',
    "bom": b"\xef\xbb\xbf{}",
    "null": b"null",
    "zeros": bytes(10_000),
    "commas": b'{"products": [' + b", " * 500_000,
    "comments": b"#\n" * 500_000 + b"{,",
    "quotes": b'{"\\' * 1_000_000,
    "spaces": b"{," + b" " * 1_000_000,
    "yaml lists": b"- " * 500_000,
    "yaml keys": b"? " * 500_000,
    "yaml entries": b"- 1\n" * 500_000,
    "yaml aliases": b"a: &a [x]\nb: &b [*a, *a]\nproducts: [*b, *b]",
    "yaml objects": b"products: !!python/object/apply:os.system ['exit 1']",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name, folder):
    path = folder / ("z_asn.yaml" if name.startswith("yaml") else "z_asn.json")
    path.write_bytes(HOSTILE[name])
    refused(read_association, path, error=AssociationError)


@pytest.mark.parametrize("name", ["fifo_calints.fits", "folder", "loop_calints.fits", "/dev/zero"])
def test_no_file(name, folder):
    refused(read_association, folder / name, error=AssociationError, seconds=5)
