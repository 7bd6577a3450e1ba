"""Bad input through the command line: one clear line and an exit code, or a result that says so.

No case may leave a half-written file; what is found wrong while reading leaves no file at all.
"""

import errno
import io
import os
import re
import shutil
from collections import namedtuple

import numpy as np
import pytest
from astropy.io import fits

from gpucoron.io import files
from tests.helpers.tiny_sets import N_REFERENCES, complete, one_thread, only_error  # noqa: F401

NAN, INF = np.nan, np.inf
IMAGES = ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")
VARIANCES = IMAGES[3:]
OPTIONS = ("-q", "--set", "klip.truncate=3")


def put(value, *index):
    """Return a function that puts a value into an array, everywhere or at an index."""

    def change(array):
        array = array.copy()
        array[index or ...] = value
        return array

    return change


def read(tiny, suffix):
    """Return {name: {HDU: data}} of the products of a kind."""
    found = {}
    for path in sorted(tiny.out.glob(f"*_{suffix}.fits")):
        with fits.open(path, memmap=False) as hdus:
            found[path.name] = {h.name: h.data for h in hdus}
    return found


def named(tiny, name):
    """Return the files that a name such as "sci0", "psf" (all of them) or "mask" stands for."""
    if name in ("asn", "mask"):
        return [getattr(tiny, name)]
    paths = {"sci": tiny.science, "psf": tiny.psf}[name[:3]]
    return [paths[int(name[3:])]] if name[3:] else paths


# What prepares a case: a function of the set; it may return options.


def edit(*which, **changes):
    """Edit the exposures of those names; all by default."""
    return lambda tiny: tiny.edit(*(p for name in which for p in named(tiny, name)), **changes)


def content(name, change):
    """Put other bytes into a file, which may be those that a function makes of the old ones."""

    def prepare(tiny):
        (path,) = named(tiny, name)
        path.write_bytes(change(path.read_bytes()) if callable(change) else change)

    return prepare


def lost(name):
    return lambda tiny: named(tiny, name)[0].unlink()


def only(*names):
    """Keep the members of those names."""
    return lambda tiny: tiny.members(lambda n: n in [p.name for k in names for p in named(tiny, k)])


def psfmask(change):
    """Edit the psfmask and use it."""
    return lambda tiny: tiny.edit(tiny.mask, SCI=change) or ["--psfmask", tiny.mask]


def given(options):
    """Give options, in which INPUT stands for the folder."""
    return lambda tiny: options.replace("INPUT", str(tiny.folder)).split()


def without_psf(*options):
    """Give options, and leave out every psf member by --exclude-reference."""
    return lambda tiny: [*options, *(f"--exclude-reference={p.name}" for p in tiny.psf)]


def out(name, make=lambda path: None):
    """Write into another folder."""

    def prepare(tiny):
        make(tiny.out)
        tiny.out = tiny.out / name

    return prepare


def both(*prepares):
    """Do one after another; return what the last returns."""
    return lambda tiny: [prepare(tiny) for prepare in prepares][-1]


# ---- what is an error

Bad = namedtuple("Bad", "prepare code text late")
CASES = []


def bad(text, prepare, code=3, late=False):
    """Register a case: prepare(tiny) spoils it and may return a list of options.

    `text` is a regular expression, in which {asn}, {sci0}, {psf0} ... stand for names of files.
    `late` says that whole products may be there when the error is found.
    """
    CASES.append(pytest.param(Bad(prepare, code, text, late), id=text))


def prepared(case, tiny):
    """Prepare a case; return its options."""
    options = case.prepare(tiny)
    return options if isinstance(options, list) else ()


@pytest.mark.parametrize("case", CASES)
def test_errors(case, tiny, capsys):
    options = prepared(case, tiny)
    before = tiny.files()
    assert tiny.command(*OPTIONS, *options) == case.code
    out, err = capsys.readouterr()
    line = only_error(err)
    pattern = re.sub(r"\{(\w+)\}", lambda m: re.escape(named(tiny, m[1])[0].name), case.text)
    assert re.search(pattern, line), f"{pattern!r} is not in {line!r}"
    assert out == ""
    left = [] if str(tiny.out).startswith("/proc") else tiny.files()
    if not case.late:
        assert left == before
    assert not [name for name in left if not name.endswith(".fits")]
    for name in left:
        complete(tiny.out / name)


# The association; the third is as the specification prints it: a list of members without a comma.
NO_JSON = b'{"a": 1,\n "b" 2}'
NO_COMMA = b"""{"asn_type": "coron3",
 "products": [
  {"members": [
   {"expname": "a_calints.fits"
    "exptype": "psf"}
  ]}]}"""
NO_PRODUCTS = "not a level-3 association: no 'products', expected a list of products"
bad("{asn}: no such file, expected a level-3 association", lost("asn"))
bad('{asn}: not valid JSON at line 2, column 6: .*the line reads: "b" 2', content("asn", NO_JSON))
bad(r"{asn}: not valid JSON at line \d+, column \d+: ", content("asn", NO_COMMA))
bad(
    "{asn}: is a FITS file, expected a level-3 association",
    lambda tiny: shutil.copy(tiny.science[0], tiny.asn),
)
bad(NO_PRODUCTS, content("asn", b'{"asn_type": "coron3"}'))
found = r"no member with exptype '{}' \(found: {}\), expected at least one "
bad(found.format("psf", "science") + "reference", both(only("sci"), given("--mode rdi")))
bad("no psf member to use, and only one science exposure .{sci0}.", only("sci0"))
bad(found.format("science", "psf") + "exposure of the", only("psf"))
UNKNOWN = "klip.exclude_reference is 'jw1', expected the file or root name"
bad(UNKNOWN, given("--exclude-reference jw1"), 2)
bad("klip.exclude_reference leaves none of the 3 psf members", without_psf("--mode", "rdi"), 2)
bad("klip.mode is roll, which is no KLIP", given("--mode roll --set klip.annuli=3"), 2)
bad("source .* px from the star moves by at most", given("--mode adi --set klip.movement=9"))
bad("klip.movement is '-1'; expected a number of pixels", given("--set klip.movement=-1"), 2)
bad(r"{asn}: 1 of 5 members missing \(looked for relative to .*/input\): {psf1}", lost("psf1"))

# Exposures that cannot be read
bad("{psf1}: not a FITS file: is empty", content("psf1", b""))
bad("{psf1}: not a FITS file: begins with ", content("psf1", b"not FITS" * 1000))
bad(
    r"{sci1}: is cut short: by its header \w+ ends at byte \d+, but the file has \d+",
    content("sci1", lambda old: old[:60_000]),
)
bad("{psf2}: is cut short: ", content("psf2", lambda old: old[:-5000]))
bad(
    "{psf2}: has no SCI extension .found: PRIMARY, ERR, .*expected a _calints or _cal",
    edit("psf2", SCI=None),
)
bad(
    r"{psf0}: SCI has 4 axes \(1, 2, \d+, \d+\), expected \(nints, ny, nx\) or \(ny, nx\)",
    edit("psf0", SCI=lambda a: a[None]),
)
bad("{sci0}: has no ERR data .*, expected errors of shape", edit("sci0", ERR=None))
bad(
    r"{sci0}: DQ has shape \(2, 36, 40\), expected \(3, 36, 40\) as SCI has",
    edit("sci0", DQ=lambda a: a[:2]),
)

# Exposures that do not belong together
shape = r"{{psf{}}}: the image shape \(ny, nx\) is \({}, 40\), but {{sci0}} has \(36, {}\)"
narrow = dict.fromkeys((*IMAGES, "AREA"), lambda a: a[..., 1:])
low = dict.fromkeys((*IMAGES, "AREA"), lambda a: a[..., 1:, :])
bad(shape.format(0, 36, 39) + "; members of", edit("sci", **narrow))
bad(shape.format(1, 35, 40), edit("psf1", **low))
for keyword, value, unit in (
    *(("BUNIT", "DN/s", ""), ("FILTER", "F335M", ""), ("CORONMSK", "MASKA210R", "")),
    *(("PUPIL", "MASKBAR", ""), ("DETECTOR", "NRCA2", ""), ("SUBARRAY", "SUB640A210R", "")),
    *(("INSTRUME", "MIRI", ""), ("PIXAR_A2", 0.001, r" \(arcsec2\)")),
):
    text = f"{{psf2}}: {keyword}{unit} is {value}, but {{sci0}} has "
    bad(text, edit("psf2", **{keyword: value}))
bad(
    "{sci1}: points .* arcmin away from {sci0}, expected science exposures within",
    edit("sci1", ASDF=None, CRVAL1=151.0),
)

# Exposures without what a step needs
for name in ("sci0", "sci1"):
    text = "no ASDF extension, so no WCS, and no FITS WCS in the header of SCI .*resample.skip=true"
    bad(f"{{{name}}}: {text}", edit(name, ASDF=None, CTYPE1=None))
bad("{asn}: no reference integration has a usable pixel", edit("psf", SCI=put(NAN)))
bad("{asn}: no reference integration has a usable pixel", edit("psf", DQ=lambda a: a | 1))
bad(
    "{sci0}: no integration has a usable pixel .finite and not flagged DO_NOT_USE.",
    edit("sci", SCI=put(NAN)),
)
bad("{sci1}: no integration has a usable pixel", edit("sci1", SCI=put(NAN)))
bad("the reference images are all constant: no PSF to model", edit("psf", SCI=put(0.0)), late=True)
bad(
    "{sci1}: has neither TMEASURE nor XPOSURE, expected one of them to weight by "
    r"\(resample.weight_type=exptime\)",
    both(edit("sci1", XPOSURE=None, TMEASURE=None), given("--set resample.weight_type=exptime")),
)

by_time = given("--set resample.weight_type=exptime")
for value in (0.0, -5.0, 1e-30, 1e300):
    text = rf"{{sci1}}: TMEASURE is {value:g} s, expected 0.001 to 1e\+08 s to weight"
    bad(text.replace("1e+300", r"1e\+300"), both(edit("sci1", TMEASURE=value), by_time))

# ERR and VAR_* that leave no usable pixel
like_jwst = given("--preset jwst")
top, bottom = (put(NAN, ..., rows, slice(None)) for rows in (slice(0, 18), slice(18, None)))
bad("{sci0}: VAR_FLAT is NaN in every pixel, and", both(edit(VAR_FLAT=put(NAN)), like_jwst))
bad("{sci1}: ERR is NaN in every pixel, and a", both(edit("sci1", ERR=put(NAN)), like_jwst))
bad("{psf0}: VAR_RNOISE is NaN in", both(edit("psf", VAR_RNOISE=put(NAN)), like_jwst))
bad("{sci0}: no integration has a usable pixel that is not NaN", edit(ERR=top, VAR_FLAT=bottom))
one_row = dict.fromkeys(IMAGES, lambda a: a[:, 16:17])
bad(r"{sci0}: SCI has images of shape \(1, 40\), expected 2 x 2 pixels or more", edit(**one_row))

# The psfmask; tests/io/test_psfmask.py has more
bad(
    "{mask}: the psfmask has 1e-200 as its largest value",
    psfmask(lambda a: 0 * a.astype("f8") + 1e-200),
)
bad("{mask}: the psfmask has 1e.30 as its largest value", psfmask(lambda a: 0 * a + 1e30))
bad(
    "{mask}: the psfmask is above 0 in 1 pixels only",
    psfmask(lambda a: put(1, 3, 3)(0 * a.astype("f8") + 1e-9)),
)
bad("no.fits: no such file, expected a FITS file", given("--psfmask INPUT/no.fits"))
bad(
    r"{mask}: the psfmask has shape \(35, 40\), but the exposures have \(36, 40\)",
    psfmask(lambda a: a[1:]),
)
bad(
    "{mask}: the psfmask is above 0 in 3 pixels only, expected more than 4",
    psfmask(lambda a: put(1, 3, slice(0, 3))(0 * a)),
)
bad("{sci0}: the psfmask has shape", lambda tiny: ["--psfmask", tiny.science[0]])

# Parameters and device; tests/cli/test_cli.py has more
bad("there is no step 'klipp'.*klip.truncate", given("--set klipp.truncate=3"), 2)
bad("--set klip.truncate=-1: .*expected an integer of 0 or", given("--set klip.truncate=-1"), 2)
bad("'lanczos4'.*'square' or 'point' or 'turbo'", given("--set resample.kernel=lanczos4"), 2)
bad("stack_refs.skip is true, but klip needs", given("--set stack_refs.skip=true"), 2)
bad("device 7 cannot be used: ", given("--device 7"), 4)
for name, value in (
    *(("align_refs.bad_bits", 2**40), ("outlier_detection.good_bits", "~-1")),
    *(("klip.truncate", "1,1e300"), ("align_refs.median_box_length", "9e99")),
    *(("resample.pixel_scale", "1e-300"), ("resample.crpix", "1e300,0")),
    *(("resample.rotation", "-1e300"), ("resample.fillval", "1e39")),
):
    bad(f"--set {name}={value}: ".replace("+", "."), given(f"--set {name}={value}"), 2)
for setting in ("pixel_scale=2e9", "pixel_scale_ratio=1e-9"):
    words = f"--set resample.{setting} --set resample.output_shape=50,50"
    bad("output pixels would have .* times the side of the input's", given(words), 2)
for size in ("1e999", "nan", "-1"):
    bad(f"memory is '{size}', expected a size", given(f"--memory={size}"), 2)
for setting in ("output_shape=1,1", "crval=10,95", "output_wcs=no.asdf"):
    bad(setting.split("=")[0], given(f"--set resample.{setting}"), 2, late=True)

# The output folder
bad(
    "output folder .*/out is a file, expected a folder",
    lambda tiny: tiny.out.write_text(""),
    code=5,
)
bad(
    "cannot make output folder .*/out/deep: Not a directory",
    out("deep", lambda path: path.write_text("")),
    code=5,
)
bad("cannot (make output folder|write) /proc/gpucoron: ", out("/proc/gpucoron"), 5)


def test_output_folder_read_only(tiny, capsys, monkeypatch):
    """The superuser may write anywhere, so that the refusal is the test's."""
    tiny.out.mkdir(mode=0o555)
    if os.access(tiny.out, os.W_OK):

        def refuse(path, *args, **kwargs):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr("pathlib.Path.touch", refuse)
    assert tiny.command(*OPTIONS) == 5
    error = only_error(capsys.readouterr().err)
    assert error == f"gpucoron: error: cannot write {tiny.out}: Permission denied"
    assert tiny.files() == []


def test_products_that_exist(tiny, capsys):
    tiny.out = tiny.out / "deep" / "er"
    assert tiny.command(*OPTIONS, "--save", "i2d") == 0
    (name,) = tiny.files()
    old = (tiny.out / name).read_bytes()
    assert tiny.command(*OPTIONS, "--no-overwrite") == 5
    error = only_error(capsys.readouterr().err)
    assert f"{name} exists; allow overwriting or choose another output folder" in error
    assert tiny.files() == [name] and (tiny.out / name).read_bytes() == old
    assert tiny.command(*OPTIONS, "--no-overwrite", "--save", "psfsub") == 0
    assert tiny.command(*OPTIONS, "--save", "i2d") == 0
    assert len(tiny.files()) == 3


# ---- writing that fails
@pytest.mark.parametrize("suffix", ["crfints", "psfsub", "i2d"])
def test_disk_that_fills_up(suffix, tiny, capsys, monkeypatch):
    class SmallFile(io.BufferedWriter):
        def write(self, data):
            if f"_{suffix}.fits" in str(self.name) and self.tell() > 20_000:
                super().write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def opened(path, mode):
        return open(path, mode) if mode == "rb" else SmallFile(io.FileIO(path, mode))

    monkeypatch.setattr(files, "open", opened, raising=False)
    assert tiny.command(*OPTIONS, "--save", "crfints,psfsub,i2d") == 5
    line = only_error(capsys.readouterr().err)
    assert re.search(
        rf"cannot write \S+_{suffix}\.fits: No space left on device(; \d+ of 8 "
        r"products are complete in \S+, --resume continues)?$",
        line,
    )
    left = tiny.files()
    assert os.path.basename(re.search(r"write (\S+):", line)[1]) not in left
    for name in left:
        assert name.endswith(".fits")
        complete(tiny.out / name)


@pytest.mark.parametrize("fail", ["pwrite", "replace"])
def test_psfalign_on_a_disk_that_fails(fail, tiny, capsys, monkeypatch):
    real = getattr(os, fail)

    def no(*args):
        if str(args[-1]).endswith("_run.json"):
            return real(*args)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(f"gpucoron.io.psfalign.os.{fail}", no)
    assert tiny.command(*OPTIONS, "--save", "psfalign") == 5
    error = only_error(capsys.readouterr().err)
    assert re.search(r"cannot write \S+_psfalign\.fits: Input/output error$", error)
    assert tiny.files() == []


# ---- what gives a result, and a warning where something is amiss

Odd = namedtuple("Odd", "prepare warnings check")
ODD_CASES = []


def odd(name, prepare, *warnings, check=None):
    """Register a case: prepare(tiny) does something odd; exactly these warnings are expected."""
    ODD_CASES.append(pytest.param(Odd(prepare, warnings, check), id=name))


def whole(tiny):
    """Expect every pixel of psfsub, and most of i2d, to have a value."""
    for product in read(tiny, "psfsub").values():
        assert np.isfinite(product["SCI"]).all() and np.isfinite(product["ERR"]).all()
    (i2d,) = read(tiny, "i2d").values()
    known = np.isfinite(i2d["SCI"])
    assert known.mean() > 0.7 and (np.isfinite(i2d["ERR"]) == known).all()
    assert np.nanstd(i2d["SCI"]) < 60


@pytest.mark.parametrize("case", ODD_CASES)
@pytest.mark.slow
def test_results(case, tiny, capsys):
    assert tiny.command(*OPTIONS, *prepared(case, tiny)) == 0
    out, err = capsys.readouterr()
    # images of 36 x 40 pixels are aligned within 0.1 px only where the wavefronts differ
    usual = re.compile("inconsistent|images? could")
    lines = (line for line in err.splitlines() if not usual.search(line))
    warned = [line.partition("warning: ")[2] for line in lines]
    assert len(warned) == len(case.warnings), err
    for text, line in zip(case.warnings, warned, strict=True):
        assert re.search(text, line), f"{text!r} is not in {line!r}"
    (case.check or whole)(tiny)


def exptype_in_upper_case(association):
    for member in association["products"][0]["members"]:
        member["exptype"] = member["exptype"].upper()


def background(association):
    member = {"expname": "sky_calints.fits", "exptype": "background"}
    association["products"][0]["members"].append(member)


def no_name(association):
    del association["products"][0]["name"]


odd("exptype in upper case", lambda tiny: tiny.edit_asn(exptype_in_upper_case))
odd(
    "background member",
    lambda tiny: tiny.edit_asn(background),
    r"ignoring sky_calints.fits \(background\): neither science nor psf",
)
odd(
    "product without a name",
    lambda tiny: tiny.edit_asn(no_name),
    r"product 1 has no name; using the standard one, jw09100-c1001_t001_nircam_f444w-maskrnd-",
)


def copied(kind):
    """List a copy of the first exposure of a kind as another reference."""

    def prepare(tiny):
        copy = tiny.folder / "copy_calints.fits"
        shutil.copy(named(tiny, f"{kind}0")[0], copy)
        member = {"expname": copy.name, "exptype": "psf"}
        tiny.edit_asn(lambda association: association["products"][0]["members"].append(member))

    return prepare


SAME_IMAGE = r"copy_calints.fits \(psf\) begins with the same image as jw0910000{}\S+ \({}\): "
odd(
    "science copied as a reference",
    copied("sci"),
    SAME_IMAGE.format(1, "science") + "the target is subtracted from itself",
    check=lambda tiny: None,
)
odd("a reference copied", copied("psf"), SAME_IMAGE.format(3, "psf") + "it counts twice")
names = {"CORONMSK": "MASK335R", "DETECTOR": "NRCA5", "SUBARRAY": " n/a", "PUPIL": "ANY"}
odd("keywords in another spelling", edit("psf", **names, BUNIT="MJy sr-1"))
odd(
    "a reference from elsewhere on the detector",
    edit("psf1", SUBSTRT1=1),
    r"the subarray's corner \(SUBSTRT1, SUBSTRT2\) is \(1, \d+\), but jw09100001001.* has \(\d+, ",
)


def rolls_as_references(association):
    """Let each science exposure be the reference of the other, in a product of its own."""
    rolls = [m["expname"] for m in association["products"][0]["members"][:2]]
    association["products"] = [
        {"name": roll[:13], "members": [{"expname": roll, "exptype": "science"}]} for roll in rolls
    ]
    for product, other in zip(association["products"], rolls[::-1], strict=True):
        product["members"].append({"expname": other, "exptype": "psf"})


text = "klip.truncate is 3, and there are {} reference images: "
odd(
    "rolls that are references of each other",
    lambda tiny: tiny.edit_asn(rolls_as_references),
    text.format(2),
    check=lambda tiny: [complete(tiny.out / f"jw0910000{i}001_i2d.fits") for i in (1, 2)],
)
odd(
    "one reference integration",
    only("sci", "psf1"),
    "klip.truncate is 3, and there is 1 reference image: ",
    "the star's position is not measured, .* no integration could be registered",
    "i2d is combined by the exposures' GWCSs, not about the star",
    "PSF subtraction leaves 8[67]% of the rms of jw09100001001_03108_00001_nrcalong within",
)


def errors_all_the_same(tiny):
    whole(tiny)
    for product in read(tiny, "psfsub").values():
        assert (product["ERR"] > 0).all()


def two_planes(tiny):
    whole(tiny)
    assert [len(p["SCI"]) for p in read(tiny, "psfsub").values()] == [1, 2]


def four_references(tiny):
    whole(tiny)
    (stack,) = read(tiny, "psfstack").values()
    assert len(stack["SCI"]) == sum(N_REFERENCES) - 1


def first_plane_missing(tiny):
    first = next(iter(read(tiny, "psfsub").values()))
    assert np.isnan(first["SCI"][0]).all() and np.isnan(first["ERR"][0]).all()
    assert np.isfinite(first["SCI"][1:]).all() and np.isfinite(first["ERR"][1:]).all()
    assert np.all(first["DQ"][0] & 1)
    (i2d,) = read(tiny, "i2d").values()
    assert np.isfinite(i2d["SCI"]).mean() > 0.7 and not (i2d["CON"] & 1).any()


odd(
    "fewer references than truncate",
    given("--set klip.truncate=9"),
    "klip.truncate is 9, and there are 5 reference images: all of their KL modes are used",
    check=errors_all_the_same,
)
odd(
    "one integration and a cal image",
    both(
        edit("sci0", **dict.fromkeys(IMAGES, lambda a: a[:1])),
        edit("psf0", **dict.fromkeys(IMAGES, lambda a: a[0])),
    ),
    check=two_planes,
)
for name, prepare, number in (
    ("nan", edit("psf0", SCI=put(NAN, 0)), 1),
    ("inf", edit("psf0", SCI=put(INF, 0)), 1),
    ("flagged", edit("psf1", DQ=lambda a: a | 1), 2),
):
    exposure = f"jw09100003001_0310a_0000{number}_nrcalong"
    text = f"reference without a usable pixel left out: {exposure}, integration 1"
    odd(f"one reference integration {name}", prepare, text, check=four_references)
missing = edit("sci0", SCI=put(NAN, 0))
for name, prepare in (("", missing), (" align first", both(missing, given("--align first")))):
    text = "jw09100001001_03108_00001_nrcalong: no usable pixel in integration 1, which will be NaN"
    odd(f"first science integration nan{name}", prepare, text, check=first_plane_missing)
odd("inf in science", edit("sci0", SCI=put(-INF, 0, 5, 6)))
odd("inf in a reference", edit("psf0", SCI=put(INF, 0, 5, 6)))


def flagged(tiny):
    whole(tiny)
    second = list(read(tiny, "psfsub").values())[1]
    assert second["DQ"][0, 5, 6] & 1 and not second["DQ"][1, 5, 6] & 1


odd(
    "inf in one of two integrations",
    edit("sci1", SCI=put(INF, 0, 5, 6), DQ=put(0, slice(None), 5, 6)),
    check=flagged,
)
odd(
    "inf in err and variances",
    edit(ERR=put(INF, 0, 5, 6), VAR_RNOISE=put(INF, 0, 7, 6), VAR_POISSON=put(INF, 0, 8, 6)),
)
for name, change in (("no variances", None), ("empty variances", lambda a: None)):
    text = "resample: 2 of 2 exposures without VAR_RNOISE; the weight of their pixels is 1"
    odd(name, edit(**dict.fromkeys(VARIANCES, change)), text)


def like_sane_weights(tiny):
    """Expect what the exposures would give with the VAR_RNOISE that they had."""
    whole(tiny)
    (i2d,) = read(tiny, "i2d").values()
    assert np.isfinite(i2d["WHT"]).all() and (i2d["WHT"] >= 0).all()
    assert np.bitwise_or.reduce(i2d["CON"], axis=None) == 0b11111


def weights(which, value, *index):
    return edit(which, VAR_RNOISE=put(value, *index))


for value, is_what in ((0, "0"), (-1, "negative"), (INF, "infinite"), (1e-40, "below 1.2e-38")):
    odd(
        f"read noise {is_what} in all science exposures",
        weights("sci", value),
        f"00001_.*, .*0002001_.*: VAR_RNOISE is {is_what} in every pixel; it is left out",
        "resample: 2 of 2 exposures without VAR_RNOISE; the weight of their pixels is 1",
        check=like_sane_weights,
    )
first = "jw09100001001_03108_00001_nrcalong"
odd(
    "read noise nan in one exposure",
    weights("sci0", NAN),
    f"{first}.*: VAR_RNOISE is NaN in every pixel; it is left out",
    f"1 of 2 exposures without VAR_RNOISE; the weight .* is the median of the others' .{first}",
    check=like_sane_weights,
)
odd(
    "read noise negative in an integration",
    weights("sci1", -1, 0),
    "2001_.*: VAR_RNOISE is not above 0, or infinite, in 1344 of 2688 good pixels; their weight is",
)
times = "have .* times the weight of the other exposures'"
odd(
    "read noise too small in one exposure",
    weights("sci0", 1e-30),
    f"{first}_calints.fits: its pixels {times}.*hardly anything of these",
    f"jw09100002001.*: its pixels {times}.*hardly anything of it",
)
for value, is_what in ((0, "0"), (NAN, "NaN"), (-1, "negative")):
    text = f"3_nrcalong_calints.fits: ERR is {is_what} in every pixel; it is not used"
    unknown = [f"jw0910000{k}.*: the noise of 100 % of the pixels.*is not known" for k in (1, 2)]
    odd(f"err {is_what}", edit(ERR=put(value)), text, *unknown)
odd("flat nan", edit(VAR_FLAT=put(NAN)), "0003_nrcalong.*: VAR_FLAT is NaN in every pixel; it is l")
small = edit("sci0", ERR=lambda a: a * 1e-6, SCI=lambda a: a + np.random.default_rng(0).normal(a))
odd(
    "err too small",
    small,
    f"{first}.*: outlier_detection flagged .* pixels",
    f"only 31.1% of the pixels of {first} within the psfmask are good",
    check=lambda tiny: 0,
)

odd(
    "no dq",
    both(edit(SCI=np.nan_to_num), edit(DQ=None)),
    *[
        "has no DQ data; taking all pixels as good",
        "ERR, VAR_POISSON, VAR_RNOISE, VAR_FLAT are NaN in .* good pixels; they are not used",
    ]
    * 5,
)
text = "jw0910000{}001.*no polygon in S_REGION; its footprint is taken from the GWCS"
odd("no s region", edit(S_REGION=None), text.format(1), text.format(2))
odd(
    "an S_REGION elsewhere",
    edit("sci1", S_REGION="POLYGON ICRS  10.0 9.0 10.0 9.1 10.1 9.1 10.1 9.0"),
    "jw09100002001.*S_REGION is .* px from the outline of the GWCS; the output .* by the GWCS",
)
odd("no wcs in the references", edit("psf", ASDF=None))
odd(
    "quirks of real files: ERR in float64, edges of NaN without a flag, other INT_TIMES or none",
    both(
        edit(
            ERR=lambda a: a.astype("f8"),
            SCI=lambda a: put(NAN, ..., slice(0, 2))(put(NAN, slice(None), 0)(a)),
        ),
        edit("sci0", INT_TIMES=lambda t: np.concatenate([t] * 5)),
        edit("psf0", INT_TIMES=None),
        edit("psf1", AREA=None),
    ),
)
constant = edit("psf1", SCI=put(0.0))
odd(
    "a constant reference",
    constant,
    "VAR_FLAT are NaN in 38 of 1382",
)


def built_in(tiny):
    whole(tiny)
    for path in tiny.out.glob("*_psfalign.fits"):
        assert fits.getval(path, "R_PSFMAS") == "N/A"


odd("nothing odd, no psfmask", lambda tiny: None, check=built_in)


def test_no_psfmask_is_logged(tiny, capsys, monkeypatch):
    monkeypatch.delenv("CRDS_PATH", raising=False)
    assert tiny.command("--save", "psfsub") == 0
    err = capsys.readouterr().err
    assert re.search("psfmask: none given and .*; built in: all ones, every pixel counts", err)


def test_an_error_in_the_second_product_leaves_the_first_whole(tiny, capsys):
    tiny.split("first", "second")
    psf, science = tiny.psf[0].name, tiny.science[1]
    tiny.edit(science, FILTER="F335M")
    assert tiny.command(*OPTIONS) == 3
    error = only_error(capsys.readouterr().err)
    assert f"{psf}: FILTER is F444W, but {science.name} has F335M" in error
    left = tiny.files()
    for name in left:
        complete(tiny.out / name)
    assert not [name for name in left if "second" in name or not name.endswith(".fits")]
