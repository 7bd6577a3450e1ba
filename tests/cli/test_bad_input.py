"""Bad input through the command line: one clear line and an exit code.

No case may leave a half-written file; what is found wrong while reading leaves no file at all.
"""

import errno
import io
import os
import re
import shutil
from collections import namedtuple

import pytest

from gpucoron.io import files
from tests.helpers.spoil import (
    IMAGES,
    NAN,
    OPTIONS,
    both,
    content,
    edit,
    given,
    lost,
    named,
    only,
    out,
    prepared,
    psfmask,
    put,
    without_psf,
)
from tests.helpers.tiny_sets import complete, one_thread, only_error  # noqa: F401

Bad = namedtuple("Bad", "prepare code text late")
CASES = []


def bad(text, prepare, code=3, late=False):
    """Register a case: prepare(tiny) spoils it and may return a list of options.

    `text` is a regular expression, in which {asn}, {sci0}, {psf0} ... stand for names of files.
    `late` says that whole products may be there when the error is found.
    """
    CASES.append(pytest.param(Bad(prepare, code, text, late), id=text))


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
