"""Associations: what is read, and what each bad one is told."""

import json

import pytest

from gpucoron import io
from gpucoron.errors import AssociationError
from gpucoron.io.exposures import ExposureMeta
from tests.helpers.makers import alike, make_asn, product, read_error

SCI, SCI2, PSF, PSF2 = (f"jw0123400{i}001_03102_00001_nrcalong_calints.fits" for i in range(1, 5))
GOOD, GOOD2 = ([(name, "science"), (PSF, "psf")] for name in (SCI, SCI2))


def error_of(path):
    return read_error(AssociationError, io.read_association, path)


def asn_of(path, *products):
    """Write an association of products, (members, name) each, and return its path."""
    return make_asn(path, None, products=[product(*p) for p in products])


def only_product(path):
    (only,) = io.read_association(path).products
    return only


@pytest.fixture
def asn_path(tmp_path):
    return tmp_path / "jw_asn.json"


def test_reads_members_relative_to_the_file(asn_path, monkeypatch):
    members = [(PSF, "psf"), (SCI, "science"), (PSF2, "PSF"), (SCI2, " Science ")]
    make_asn(asn_path, members)
    monkeypatch.chdir("/")
    asn = io.read_association(str(asn_path))
    (only,) = asn.products
    assert [m.expname for m in only.science] == [SCI, SCI2]
    assert [m.expname for m in only.psf] == [PSF, PSF2]
    assert [m.exptype for m in only.members] == ["psf", "science", "psf", "science"]
    assert all(m.path == asn_path.parent / m.expname for m in only.members)
    assert (asn.asn_id, asn.asn_pool, asn.table_name) == ("c1001", "none", "jw_asn.json")
    assert (asn.program, asn.target, only.ignored) == ("01234", "t001", ())


def test_subfolders_and_absolute_paths(tmp_path, asn_path):
    (tmp_path / "refs").mkdir()
    elsewhere = tmp_path / "elsewhere_calints.fits"
    make_asn(asn_path, [(str(elsewhere), "science"), (f"refs/{PSF}", "psf")])
    only = only_product(asn_path)
    assert only.science[0].path == elsewhere
    assert only.psf[0].path == tmp_path / "refs" / PSF


def test_other_exptypes_are_reported_and_ignored(asn_path, caplog):
    make_asn(asn_path, [*GOOD, ("ta.fits", "TARGET_ACQUISITION")])
    (asn_path.parent / "ta.fits").unlink()
    only = only_product(asn_path)
    assert [m.expname for m in only.ignored] == ["ta.fits"]
    assert len(only.members) == 3
    assert "ignoring ta.fits (target_acquisition): neither science nor psf" in caplog.text


@pytest.mark.parametrize(
    "names, expected",
    [(("one", "two"), ["one", "two"]), *(((name,), [None]) for name in (None, "", "  "))],
)
def test_names_of_products(asn_path, names, expected):
    asn_of(asn_path, *zip((GOOD, GOOD2), names, strict=False))
    assert [p.name for p in io.read_association(asn_path).products] == expected


def test_real_associations(shared_data):
    for path in sorted(shared_data.glob("*/*_asn.json")):
        asn = io.read_association(path)
        (only,) = asn.products
        meta = io.read_meta(only.science[0].path)
        assert io.standard_product_name(asn, meta) == only.name


# what is no association


def spec_example(shared_data):
    text = (shared_data.parent / "calwebb_coron3.txt").read_text()
    return text[text.index('{"asn_type"') : text.index("## Outputs")].strip()


def test_the_example_of_the_specification_is_not_json(shared_data, asn_path):
    asn_path.write_text(spec_example(shared_data))
    assert error_of(asn_path) == (
        "not valid JSON at line 8, column 10: Expecting ',' delimiter "
        '(the line reads: "members": [)'
    )


def test_the_example_repaired_is_read(shared_data, asn_path):
    asn_path.write_text(spec_example(shared_data).replace('"products": [', '"products": [{'))
    for member in json.loads(asn_path.read_text())["products"][0]["members"]:
        (asn_path.parent / member["expname"]).touch()
    asn = io.read_association(asn_path)
    (only,) = asn.products
    assert (only.name, len(only.science), len(only.psf)) == (None, 2, 1)
    meta = ExposureMeta(instrument="NIRCAM", filter="F140M", pupil="MASKBAR", subarray="FULL")
    assert io.standard_product_name(asn, meta) == "jw10005-c1001_t001_nircam_f140m-maskbar"


def of_member(member):
    return b'{"products": [{"members": [%s]}]}' % member


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        *((content, "is empty, expected a level-3 association") for content in (b"", b" \n")),
        (b"hello", "not valid JSON at line 1, column 1: Expecting value (the line reads: hello)"),
        (b'{"products": [\n  {"name": "a",,}]}', "not valid JSON at line 2, column "),
        (b'{"products": "\xff"}', "not valid JSON: byte 14 is not text"),
        (b"[" * 200000, "not an association: nested too deeply"),
        (b'{"products": [], "products": []}', "key 'products' appears twice in one JSON object"),
        (b"SIMPLE  =                    T", "is a FITS file, expected a level-3 association"),
        (b"[1, 2]", "holds a list, expected a JSON object with a list 'products'"),
        (b"{}", "not a level-3 association: no 'products', expected a list"),
        (b'{"products": []}', "not a level-3 association: 'products' is an empty list, expected"),
        (b'{"products": {"a": 1}}', "'products' is an object, expected a list of products"),
        (b'{"products": ["a"]}', "product 1 has no list 'members'"),
        (b'{"products": [{"name": "a"}]}', "product 1 has no list 'members'"),
        (
            of_member(b'{"expname": "a.fits"}'),
            "product 1, member 1 has no 'exptype', expected a text",
        ),
        (
            of_member(b'{"expname": " ", "exptype": "psf"}'),
            "product 1, member 1 has no 'expname', expected a text",
        ),
        (of_member(b'"a.fits"'), "product 1, member 1 has no 'expname'"),
    ],
)
def test_not_an_association(asn_path, content, expected):
    asn_path.write_bytes(content)
    assert expected in error_of(asn_path)


PLAIN = {"asn_id": "c1001", "program": "01234", "products": [product(GOOD, "p")]}
JSON_TEXT = json.dumps(PLAIN, indent=1)
YAML_TEXT = f"""asn_id: c1001
program: 01234
target:
products:
- members:
  - expname: {SCI}
    exptype: science
  - {{expname: {PSF}, exptype: psf}}
  name: p
"""
PASSING_OVER = "not valid JSON, passing over"


@pytest.mark.parametrize(
    ("name", "text", "warning"),
    [
        ("asn.json", JSON_TEXT, ""),
        ("asn.json", JSON_TEXT.replace("]", ",]"), f"{PASSING_OVER} 2 trailing commas, the first "),
        ("asn.json", JSON_TEXT[:-1] + ",}", f"{PASSING_OVER} a trailing comma in line "),
        ("asn.json", "# " + JSON_TEXT, "error"),
        ("asn.json", "// a, ]\n" + JSON_TEXT, f"{PASSING_OVER} a comment in line 1"),
        ("asn.json", "[1,]" + JSON_TEXT, "error"),
        ("asn.json", YAML_TEXT, "is YAML, expected JSON; read as YAML"),
        ("asn.json", YAML_TEXT.replace(":", "", 1), "error"),
        ("asn.yaml", YAML_TEXT, ""),
        ("asn.YML", YAML_TEXT.replace("c1001", "'c1001'  # id"), ""),
        ("asn.yaml", JSON_TEXT, ""),
        ("asn.yaml", JSON_TEXT.replace("]", ",]"), ""),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_formats(tmp_path, name, text, warning, encoding, caplog):
    (tmp_path / name).write_bytes(text.encode(encoding))
    if warning == "error":
        assert error_of(tmp_path / name).startswith("not valid JSON at line ")
        return
    asn = io.read_association(tmp_path / name, check_files=False)
    (only,) = asn.products
    assert (asn.asn_id, asn.program, asn.target, only.name) == ("c1001", "01234", None, "p")
    assert [(m.expname, m.exptype) for m in only.members] == GOOD
    assert len(caplog.records) == bool(warning)
    assert (f"{name}: {warning}" if warning else "") in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("products: [\n", "not valid YAML at line 2, column 1: "),
        ("a: b: c", "not valid YAML at line 1, column 5: "),
        ("hello", "holds a text, expected a JSON object with a list 'products'"),
        ("a: &x 1\nb: *x", "line 2: YAML alias *x, expected none"),
        ("a: &x [1]\nb: {<<: [1]}", "not an association: the key <<"),
        ("a: 1\na: 2", "key 'a' appears twice in one YAML mapping, expected once"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML at line 1, column 4: "),
        ("a: 1\n---\nb: 2", "not valid YAML at line 2, column 1: "),
        ("[" * 300, "not an association: more than 200 levels of nesting"),
        ("- 1\n" * 250_000, "not an association: more than 100000 entries"),
    ],
)
def test_yaml_that_is_no_association(tmp_path, text, expected):
    (tmp_path / "asn.yaml").write_text(text)
    assert error_of(tmp_path / "asn.yaml").startswith(expected)


def test_yaml_that_jwst_writes(tmp_path):
    pytest.importorskip("jwst", reason="the jwst package is not installed")
    from jwst.associations.asn_from_list import asn_from_list
    from jwst.associations.lib.rules_level3_base import DMS_Level3_Base

    rule = {"rule": DMS_Level3_Base, "with_exptype": True, "product_name": "p"}
    made = asn_from_list(GOOD, **rule, meta={"program": "01234", "asn_type": "coron3"})
    with pytest.warns(DeprecationWarning):
        (tmp_path / "asn.yaml").write_text(made.dump(format="yaml")[1])
    (tmp_path / "asn.json").write_text(made.dump(format="json")[1])
    one, other = (
        io.read_association(tmp_path / f"asn.{e}", check_files=False) for e in ("yaml", "json")
    )
    assert one.products == other.products and one.products[0].science[0].expname == SCI
    assert (one.program, one.asn_id, one.target) == (other.program, other.asn_id, other.target)


def test_byte_order_mark_is_accepted(asn_path):
    make_asn(asn_path, GOOD)
    asn_path.write_bytes(b"\xef\xbb\xbf" + asn_path.read_bytes())
    assert io.read_association(asn_path).asn_id == "c1001"


def test_no_file_and_a_folder(tmp_path):
    assert error_of(tmp_path / "none.json") == (
        "no such file, expected a level-3 association file (JSON or YAML)"
    )
    assert error_of(tmp_path).startswith("is a folder, expected a level-3 association")


# members


@pytest.mark.parametrize(
    "members, name, expected",
    [
        (
            [(SCI, "science"), (SCI2, "science")],
            "aumic",
            "product aumic has no member with exptype 'psf' (found: science), expected at least "
            "one reference exposure, without which no PSF can be subtracted",
        ),
        (
            [(PSF, "psf"), (PSF2, "background")],
            None,
            "product 1 has no member with exptype 'science' (found: background, psf), expected…",
        ),
        ([], "a", "…(found: no members), expected at least one exposure of the target"),
    ],
)
def test_kinds_of_members_that_lack(asn_path, members, name, expected):
    alike(error_of(make_asn(asn_path, members, name=name)), expected)


def test_all_missing_members_are_listed(asn_path):
    make_asn(asn_path, [*GOOD, (PSF2, "psf"), (SCI2, "science"), ("bg.fits", "background")])
    for name in (SCI2, PSF2, "bg.fits"):
        (asn_path.parent / name).unlink()
    assert error_of(asn_path) == (
        f"2 of 4 members missing (looked for relative to {asn_path.parent}): {SCI2}, {PSF2}"
    )


UNPRINTABLE = r"'a\x00b.fits', expected at most 4000 printable characters"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("x" * 300 + ".fits", "1 of 2 members missing"),
        ("a\0b.fits", f"product 1, member 2 has the expname {UNPRINTABLE}"),
    ],
)
def test_member_names_that_no_file_can_have(asn_path, name, expected):
    make_asn(asn_path, [(SCI, "science"), (name, "psf")], touch=False)
    (asn_path.parent / SCI).touch()
    assert error_of(asn_path).startswith(expected)


SAME = "would have the same names; expected distinct file names"
HOW = (
    "but an exposure cannot be subtracted from itself; to use rolls as references of each other, "
    "list one product for each roll, in which that roll is science and the others are psf"
)
LONG, LIMIT = "x" * 240 + ".fits", "expected 1 to 200 to name products after"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (LONG, f"the file name of member {LONG} has 246 bytes with the asn_id, {LIMIT}"),
        (SCI.replace("jw", "JW"), f"…their products {SAME}"),
        (PSF.replace("calints", "cal"), f"…their products {SAME}"),
        (SCI, f"product p lists {SCI} twice, as science and as psf, {HOW}"),
        (
            f"./{SCI}",
            f"product p lists ./{SCI} (also as {SCI}) twice, as science and as psf, {HOW}",
        ),
        (f"sub/{PSF}", f"members {PSF} and sub/{PSF} differ, but their products {SAME}"),
    ],
)
def test_a_member_too_many(asn_path, more, expected):
    (asn_path.parent / "sub").mkdir()
    alike(error_of(make_asn(asn_path, [*GOOD, (more, "psf")], name="p")), expected)


def test_member_that_is_a_folder(asn_path):
    (asn_path.parent / PSF).mkdir()
    make_asn(asn_path, GOOD)
    assert error_of(asn_path) == f"member {PSF} is a folder, expected a FITS file"


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_science_listed_as_psf_by_a_link(asn_path, link):
    make_asn(asn_path, GOOD, touch=False)
    (asn_path.parent / SCI).touch()
    getattr(asn_path.parent / PSF, link)(asn_path.parent / SCI)
    expected = f"product p lists {PSF} (also as {SCI}) twice, as science and as psf, {HOW}"
    make_asn(asn_path, GOOD, name="p", touch=False)
    assert error_of(asn_path) == expected


@pytest.mark.parametrize("more", [PSF, f"./{PSF}", f"sub/../{PSF}", "link.fits", "/absolute"])
def test_member_listed_twice_is_used_once(asn_path, more, caplog):
    (asn_path.parent / "sub").mkdir()
    make_asn(asn_path, GOOD)
    if more == "link.fits":
        (asn_path.parent / more).hardlink_to(asn_path.parent / PSF)
    if more == "/absolute":
        more = str(asn_path.parent / PSF)
    make_asn(asn_path, [*GOOD, (PSF2, "psf"), (more, "PSF")], name="p")
    assert [m.expname for m in only_product(asn_path).psf] == [PSF, PSF2]
    also = "" if more == PSF else f" (also as {PSF})"
    assert (
        f"jw_asn.json: product p lists more than once what is used once: {more}{also}\n"
        in caplog.text
    )


def test_products_of_one_name(asn_path):
    assert error_of(asn_of(asn_path, (GOOD, "a"), (GOOD2, "A"))) == (
        "products 1 and 2 would both be named A; expected a name of its own for each"
    )


def test_science_in_two_products(asn_path):
    other = [(SCI, "science"), (PSF2, "psf")]
    assert error_of(asn_of(asn_path, (GOOD, "a"), (other, "b"))).startswith(
        f"{SCI} is science in product a and in product b, whose psfsub would have the same name"
    )


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "a\n/b", ".hidden", "a/", "..", "a/.fits"])
def test_names_that_are_no_file_names(asn_path, name):
    make_asn(asn_path, GOOD, name=name)
    assert error_of(asn_path).startswith(f"the name of product 1 is {name!r}, expected")


@pytest.mark.parametrize("asn_id", ["../up", "a/b", "a\\b", "a\nb", ".hidden"])
def test_ids_that_are_no_part_of_a_file_name(asn_path, asn_id):
    make_asn(asn_path, GOOD, asn_id=asn_id)
    assert error_of(asn_path).startswith(f"asn_id is {asn_id!r}, expected")


def test_name_that_is_no_text(asn_path):
    make_asn(asn_path, GOOD, name=7)
    assert error_of(asn_path) == "the name of product 1 is a number, expected a text"


def test_header_of_the_association(asn_path, caplog):
    make_asn(asn_path, GOOD, asn_id=None, asn_type="image3", program=1184, asn_pool=None, target=3)
    asn = io.read_association(asn_path)
    assert (asn.asn_id, asn.program, asn.asn_pool, asn.target) == ("a3001", "01184", None, "3")
    assert "has no asn_id; using a3001" in caplog.text
    assert "asn_type is 'image3', expected 'coron3'" in caplog.text
