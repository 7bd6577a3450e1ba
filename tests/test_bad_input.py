"""Bad input through the command line: one clear line and an exit code, or a result that says so.

No case may leave a half-written file; what is found wrong while reading leaves no file at all.
"""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
from astropy.io import fits

from gpucoron.io import files
from tests.tiny_sets import N_REFERENCES, N_SCIENCE, TinySet, complete, one_thread  # noqa: F401

NAN, INF = np.nan, np.inf
IMAGES = ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")
VARIANCES = IMAGES[3:]
OPTIONS = ("-q", "--set", "klip.truncate=3")


@pytest.fixture
def tiny(tmp_path):
    return TinySet(tmp_path)


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


# ---- what is an error

Bad = namedtuple("Bad", "prepare code texts late")
CASES = []


def bad(code, *texts, late=False):
    """Register a case: prepare(tiny) spoils it and may return options.

    Each of `texts` is a regular expression, in which {asn}, {sci0}, {psf0} ... stand for names of
    files. `late` says that whole products may be there when the error is found.
    """

    def register(prepare):
        CASES.append(pytest.param(Bad(prepare, code, texts, late), id=prepare.__name__))
        return prepare

    return register


@pytest.mark.parametrize("case", CASES)
def test_errors(case, tiny, capsys):
    options = case.prepare(tiny) or ()
    before = tiny.files()
    assert tiny.command(*OPTIONS, *options) == case.code
    out, err = capsys.readouterr()
    line = only_error(err)
    names = {"asn": tiny.asn, "mask": tiny.mask, "out": tiny.out}
    names |= {
        f"{kind}{i}": p
        for kind, paths in (("sci", tiny.science), ("psf", tiny.psf))
        for i, p in enumerate(paths)
    }
    for text in case.texts:
        pattern = re.sub(r"\{(\w+)\}", lambda m: re.escape(names[m[1]].name), text)
        assert re.search(pattern, line), f"{pattern!r} is not in {line!r}"
    assert out == ""
    left = [] if str(tiny.out).startswith("/proc") else tiny.files()
    if not case.late:
        assert left == before
    assert not [name for name in left if not name.endswith(".fits")]
    for name in left:
        complete(tiny.out / name)


def only_error(err):
    """Return the one line that reports an error, which is the last."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if "error:" in line]
    assert len(lines) == 1 and lines[0] == err.splitlines()[-1]
    assert lines[0].startswith("gpucoron: error: ") and "internal error" not in lines[0]
    return lines[0]


# ---- the association


@bad(3, "{asn}: no such file, expected a level-3 association")
def no_association(tiny):
    tiny.asn.unlink()


@bad(3, '{asn}: not valid JSON at line 2, column 6: .*the line reads: "b" 2')
def not_json(tiny):
    tiny.asn.write_text('{"a": 1,\n "b" 2}')


@bad(3, r"{asn}: not valid JSON at line \d+, column \d+: ")
def the_specification_s_example(tiny):
    """As it is printed: a list of members whose texts lack a comma."""
    tiny.asn.write_text(
        '{"asn_type": "coron3",\n "products": [\n  {"members": [\n   '
        '{"expname": "a_calints.fits"\n    "exptype": "psf"}\n  ]}]}'
    )


@bad(3, "{asn}: is a FITS file, expected a level-3 association")
def a_fits_file_for_an_association(tiny):
    shutil.copy(tiny.science[0], tiny.asn)


@bad(3, "not a level-3 association: no 'products', expected a list of products")
def not_an_association(tiny):
    tiny.asn.write_text('{"asn_type": "coron3"}')


@bad(3, r"no member with exptype 'psf' \(found: science\), expected at least one reference")
def no_psf_members(tiny):
    tiny.members(lambda name: name in [p.name for p in tiny.science])


@bad(3, r"no member with exptype 'science' \(found: psf\), expected at least one exposure of the")
def no_science_members(tiny):
    tiny.members(lambda name: name in [p.name for p in tiny.psf])


@bad(3, r"{asn}: 1 of 5 members missing \(looked for relative to .*/input\): {psf1}")
def missing_member(tiny):
    tiny.psf[1].unlink()


@bad(2, "there is no file inof; did you mean the command 'info'")
def misspelt_command(tiny):
    tiny.asn = "inof"


# ---- exposures that cannot be read


@bad(3, "{psf1}: not a FITS file: is empty")
def empty_file(tiny):
    tiny.psf[1].write_bytes(b"")


@bad(3, "{psf1}: not a FITS file: begins with ")
def no_fits_file(tiny):
    tiny.psf[1].write_bytes(b"not FITS" * 1000)


@bad(3, r"{sci1}: is cut short: by its header \w+ ends at byte \d+, but the file has \d+")
def truncated_science(tiny):
    tiny.science[1].write_bytes(tiny.science[1].read_bytes()[:60_000])


@bad(3, "{psf2}: is cut short: ")
def truncated_reference(tiny):
    tiny.psf[2].write_bytes(tiny.psf[2].read_bytes()[:-5000])


@bad(3, "{psf2}: has no SCI extension .found: PRIMARY, ERR, .*expected a _calints or _cal")
def no_sci(tiny):
    tiny.edit(tiny.psf[2], SCI=None)


@bad(3, r"{psf0}: SCI has 4 axes \(1, 2, \d+, \d+\), expected \(nints, ny, nx\) or \(ny, nx\)")
def sci_with_four_axes(tiny):
    tiny.edit(tiny.psf[0], SCI=lambda a: a[None])


@bad(3, "{sci0}: has no ERR data .*, expected errors of shape")
def no_err(tiny):
    tiny.edit(tiny.science[0], ERR=None)


@bad(3, r"{sci0}: DQ has shape \(2, 36, 40\), expected \(3, 36, 40\) as SCI has")
def dq_of_another_shape(tiny):
    tiny.edit(tiny.science[0], DQ=lambda a: a[:2])


# ---- exposures that do not belong together


@bad(3, r"{psf0}: the image shape \(ny, nx\) is \(36, 40\), but {sci0} has \(36, 39\); members of")
def shapes_of_science_and_psf_differ(tiny):
    for name in (*IMAGES, "AREA"):
        tiny.edit(*tiny.science, **{name: lambda a: a[..., 1:]})


@bad(3, r"{psf1}: the image shape \(ny, nx\) is \(35, 40\), but {sci0} has \(36, 40\)")
def shapes_of_two_references_differ(tiny):
    for name in (*IMAGES, "AREA"):
        tiny.edit(tiny.psf[1], **{name: lambda a: a[..., 1:, :]})


def _differing(keyword, value, text):
    def prepare(tiny):
        tiny.edit(tiny.psf[2], **{keyword: value})

    prepare.__name__ = f"other_{keyword}".lower()
    bad(3, f"{{psf2}}: {text} is {value}, but {{sci0}} has ")(prepare)


_differing("BUNIT", "DN/s", "BUNIT")
_differing("FILTER", "F335M", "FILTER")
_differing("CORONMSK", "MASKA210R", "CORONMSK")
_differing("PUPIL", "MASKBAR", "PUPIL")
_differing("DETECTOR", "NRCA2", "DETECTOR")
_differing("SUBARRAY", "SUB640A210R", "SUBARRAY")
_differing("INSTRUME", "MIRI", "INSTRUME")
_differing("PIXAR_A2", 0.001, r"PIXAR_A2 \(arcsec2\)")


@bad(3, "{sci1}: points .* arcmin away from {sci0}, expected science exposures within")
def science_that_points_elsewhere(tiny):
    tiny.edit(tiny.science[1], S_REGION="POLYGON ICRS  10.0 9.0 10.0 9.1 10.1 9.1 10.1 9.0")


# ---- exposures without what a step needs


@bad(3, "{sci0}: no ASDF extension, so no WCS; expected one from assign_wcs")
def no_wcs(tiny):
    tiny.edit(ASDF=None)


@bad(3, "{sci1}: no ASDF extension, so no WCS; expected one from assign_wcs")
def no_wcs_in_one_of_two(tiny):
    tiny.edit(tiny.science[1], ASDF=None)


@bad(3, "{asn}: no reference integration has a usable pixel")
def all_references_nan(tiny):
    tiny.edit(*tiny.psf, SCI=put(NAN))


@bad(3, "{asn}: no reference integration has a usable pixel")
def all_references_flagged(tiny):
    tiny.edit(*tiny.psf, DQ=lambda a: a | 1)


@bad(3, "{sci0}: no integration has a usable pixel .finite and not flagged DO_NOT_USE.")
def all_science_nan(tiny):
    tiny.edit(*tiny.science, SCI=put(NAN))


@bad(3, "{sci1}: no integration has a usable pixel")
def all_of_one_science_exposure_nan(tiny):
    tiny.edit(tiny.science[1], SCI=put(NAN))


@bad(3, "the reference images are all constant: no PSF to model", late=True)
def constant_references(tiny):
    tiny.edit(*tiny.psf, SCI=put(0.0))


@bad(
    3,
    "{sci1}: has neither TMEASURE nor XPOSURE, expected one of them to weight by "
    r"\(resample.weight_type=exptime\)",
)
def no_exposure_times(tiny):
    tiny.edit(tiny.science[1], XPOSURE=None, TMEASURE=None)
    return ["--set", "resample.weight_type=exptime"]


# ---- the psfmask


@bad(3, "no.fits: no such file, expected a FITS file")
def no_psfmask_there(tiny):
    return ["--psfmask", tiny.folder / "no.fits"]


@bad(3, r"{mask}: the psfmask has shape \(35, 40\), but the exposures have \(36, 40\)")
def psfmask_of_another_shape(tiny):
    tiny.edit(tiny.mask, SCI=lambda a: a[1:])
    return ["--psfmask", tiny.mask]


@bad(3, "{mask}: the psfmask has 1 NaN and 0 infinite values, expected numbers of 0 or more")
def nan_in_the_psfmask(tiny):
    tiny.edit(tiny.mask, SCI=put(NAN, 3, 3))
    return ["--psfmask", tiny.mask]


@bad(3, "{mask}: the psfmask has 0 NaN and 2 infinite values")
def inf_in_the_psfmask(tiny):
    tiny.edit(tiny.mask, SCI=put(INF, 3, [3, 4]))
    return ["--psfmask", tiny.mask]


@bad(3, r"{mask}: the psfmask has 40 negative values \(lowest -1\)")
def negative_psfmask(tiny):
    tiny.edit(tiny.mask, SCI=put(-1, 3))
    return ["--psfmask", tiny.mask]


@bad(3, "{mask}: the psfmask is 0 everywhere and leaves no pixel to fit")
def psfmask_that_leaves_nothing(tiny):
    tiny.edit(tiny.mask, SCI=put(0))
    return ["--psfmask", tiny.mask]


@bad(3, "{mask}: the psfmask is above 0 in 3 pixels only, expected more than 4")
def psfmask_that_leaves_too_little(tiny):
    tiny.edit(tiny.mask, SCI=lambda a: put(1, 3, slice(0, 3))(0 * a))
    return ["--psfmask", tiny.mask]


@bad(3, "{sci0}: the psfmask has shape")
def an_exposure_for_a_psfmask(tiny):
    return ["--psfmask", tiny.science[0]]


# ---- parameters and device


def _wrong(name, options, code, text):
    def prepare(tiny):
        return [str(o).replace("INPUT", str(tiny.folder)) for o in options]

    prepare.__name__ = name
    bad(code, text)(prepare)


_wrong("unknown_parameter", ["--set", "klip.trunctae=3"], 2, "did you mean 'klip.truncate'")
_wrong("unknown_step", ["--set", "klipp.truncate=3"], 2, "there is no step 'klipp'.*klip.truncate")
_wrong(
    "value_out_of_range",
    ["--set", "klip.truncate=-1"],
    2,
    "--set klip.truncate=-1: .*expected an integer of 0 or more",
)
_wrong(
    "kernel_not_there",
    ["--set", "resample.kernel=lanczos4"],
    2,
    "'lanczos4'.*expected 'square' or 'point' or 'turbo'",
)
_wrong("no_stack", ["--set", "stack_refs.skip=true"], 2, "stack_refs.skip is true, but klip needs")
_wrong("no_device", ["--device", "7"], 4, "device 7 cannot be used: ")
_wrong("no_such_kind_of_device", ["--device", "tpu"], 2, "device is 'tpu'; expected auto, cpu, or")
_wrong(
    "no_parameter_file",
    ["--params", "INPUT/no.toml"],
    3,
    "no.toml: no such file, expected a parameter file",
)
_wrong(
    "log_that_cannot_be_written",
    ["--log-file", "INPUT/no/run.log"],
    5,
    "no/run.log: cannot write the log file: No such file",
)
_wrong(
    "params_that_cannot_be_written",
    ["--save-params", "INPUT/no/p.toml"],
    5,
    "no/p.toml: cannot write: No such file",
)


@pytest.mark.parametrize(
    "setting, code",
    [
        ("resample.output_shape=1,1", 2),
        ("resample.crval=10,95", 2),
        ("resample.output_wcs=no.asdf", 2),
    ],
)
def test_an_output_grid_that_cannot_be(setting, code, tiny, capsys):
    assert tiny.command(*OPTIONS, "--set", setting) == code
    assert setting.split("=")[0].split(".")[1] in only_error(capsys.readouterr().err)
    for name in tiny.files():
        complete(tiny.out / name)


# ---- the output folder


@bad(5, "output folder .*/out is a file, expected a folder")
def output_folder_is_a_file(tiny):
    tiny.out.write_text("")


@bad(5, "cannot make output folder .*/file/out: Not a directory")
def output_folder_below_a_file(tiny):
    file = tiny.out.with_name("file")
    file.write_text("")
    tiny.out = file / "out"


@bad(5, "cannot (make output folder|write) /proc/gpucoron: ")
def output_folder_where_nothing_can_be_made(tiny):
    tiny.out = type(tiny.out)("/proc/gpucoron")


def test_output_folder_read_only(tiny, capsys, monkeypatch):
    """The superuser may write anywhere, so that the refusal is the test's."""
    tiny.out.mkdir(mode=0o555)
    if os.access(tiny.out, os.W_OK):

        def refuse(path, *args, **kwargs):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr("pathlib.Path.touch", refuse)
    assert tiny.command(*OPTIONS) == 5
    assert only_error(capsys.readouterr().err) == (
        f"gpucoron: error: cannot write {tiny.out}: Permission denied"
    )
    assert tiny.files() == []


def test_output_folder_is_made(tiny):
    tiny.out = tiny.out / "deep" / "er"
    assert tiny.command(*OPTIONS) == 0
    assert len(tiny.files()) == 11


def test_products_that_exist(tiny, capsys):
    assert tiny.command(*OPTIONS, "--save", "i2d") == 0
    (name,) = tiny.files()
    old = (tiny.out / name).read_bytes()
    assert tiny.command(*OPTIONS, "--no-overwrite") == 5
    assert re.search(
        f"{name} exists; allow overwriting or choose another output folder",
        only_error(capsys.readouterr().err),
    )
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
    assert re.search(
        r"cannot write \S+_psfalign\.fits: Input/output error$", only_error(capsys.readouterr().err)
    )
    assert tiny.files() == []


def test_psfalign_larger_than_the_disk(tiny, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")(1000, 900, 100)
    monkeypatch.setattr("gpucoron.io.psfalign.shutil.disk_usage", lambda path: usage)
    assert tiny.command(*OPTIONS, "--save", "psfalign") == 5
    assert re.search(
        r"psfalign\.fits: it takes \d+\.\d+ GiB, and the disk has 0\.00 GiB free$",
        only_error(capsys.readouterr().err),
    )
    assert tiny.files() == []


COMMAND = "import sys; from gpucoron.cli.main import main; sys.exit(main(sys.argv[1:]))"


def test_file_size_limit_of_the_system(tiny):
    """A failure of the system's own: no file may be larger than 90 kB."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000)); "
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            limit + COMMAND,
            str(tiny.asn),
            "--output-dir",
            str(tiny.out),
            "-q",
            "--save",
            "psfstack",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NUMBA_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 5 and done.stdout == ""
    assert re.search(r"cannot write \S+_psfstack\.fits: File too large$", only_error(done.stderr))
    assert tiny.files() == []


def test_exit_code_of_a_process(tiny):
    tiny.asn.write_text("{]")
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(tiny.asn)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tiny.folder,
    )
    assert done.returncode == 3 and done.stdout == ""
    assert re.search("not valid JSON at line 1, column 2", only_error(done.stderr))


# ---- what gives a result, and a warning where something is amiss

Odd = namedtuple("Odd", "prepare warnings check")
ODD_CASES = []


def odd(*warnings, check=None):
    """Register a case: prepare(tiny) does something odd; exactly these warnings are expected."""

    def register(prepare):
        ODD_CASES.append(pytest.param(Odd(prepare, warnings, check), id=prepare.__name__))
        return prepare

    return register


def whole(tiny):
    """Expect every pixel of psfsub, and most of i2d, to have a value."""
    for product in read(tiny, "psfsub").values():
        assert np.isfinite(product["SCI"]).all() and np.isfinite(product["ERR"]).all()
    (i2d,) = read(tiny, "i2d").values()
    known = np.isfinite(i2d["SCI"])
    assert known.mean() > 0.7 and (np.isfinite(i2d["ERR"]) == known).all()
    assert np.nanstd(i2d["SCI"]) < 60


@pytest.mark.parametrize("case", ODD_CASES)
def test_results(case, tiny, capsys):
    options = case.prepare(tiny) or ()
    assert tiny.command(*OPTIONS, *options) == 0
    out, err = capsys.readouterr()
    warned = [line.partition("warning: ")[2] for line in err.splitlines()]
    assert len(warned) == len(case.warnings), err
    for text, line in zip(case.warnings, warned, strict=True):
        assert re.search(text, line), f"{text!r} is not in {line!r}"
    (case.check or whole)(tiny)


@odd()
def nothing_odd(tiny):
    pass


@odd()
def exptype_in_upper_case(tiny):
    def change(content):
        for member in content["products"][0]["members"]:
            member["exptype"] = member["exptype"].upper()

    tiny.edit_asn(change)


@odd(r"ignoring sky_calints.fits \(background\): neither science nor psf")
def background_member(tiny):
    tiny.edit_asn(
        lambda content: content["products"][0]["members"].append(
            {"expname": "sky_calints.fits", "exptype": "background"}
        )
    )


@odd(r"product 1 has no name; using the standard one, jw09100-c1001_t001_nircam_f444w-maskrnd-")
def product_without_a_name(tiny):
    tiny.edit_asn(lambda content: content["products"][0].pop("name") and None)


@odd("klip.truncate is 3, and there is 1 reference image: ")
def one_reference_integration(tiny):
    tiny.members(lambda name: name in [p.name for p in (*tiny.science, tiny.psf[1])])


def no_scatter(tiny):
    whole(tiny)
    for product in read(tiny, "psfsub").values():
        assert np.abs(product["ERR"]).max() < 1e-5


@odd(
    "klip.truncate is 9, and there are 5 reference images: the basis spans all of them, and "
    "psfsub's ERR .* is 0",
    check=no_scatter,
)
def fewer_references_than_truncate(tiny):
    return ["--set", "klip.truncate=9"]


def two_planes(tiny):
    whole(tiny)
    assert [len(p["SCI"]) for p in read(tiny, "psfsub").values()] == [1, 2]


@odd(check=two_planes)
def one_integration_and_a_cal_image(tiny):
    for name in IMAGES:
        tiny.edit(tiny.science[0], **{name: lambda a: a[:1]})
        tiny.edit(tiny.psf[0], **{name: lambda a: a[0]})


def four_references(tiny):
    whole(tiny)
    (stack,) = read(tiny, "psfstack").values()
    assert len(stack["SCI"]) == sum(N_REFERENCES) - 1


@odd(
    "reference without a usable pixel left out: jw09100003001_0310a_00001_nrcalong, integration 1",
    check=four_references,
)
def one_reference_integration_nan(tiny):
    tiny.edit(tiny.psf[0], SCI=put(NAN, 0))


@odd(
    "without a usable pixel left out: jw09100003001_0310a_00002_nrcalong, integration 1",
    check=four_references,
)
def one_reference_integration_flagged(tiny):
    tiny.edit(tiny.psf[1], DQ=lambda a: a | 1)


@odd(
    "without a usable pixel left out: jw09100003001_0310a_00001_nrcalong, integration 1",
    check=four_references,
)
def one_reference_integration_inf(tiny):
    tiny.edit(tiny.psf[0], SCI=put(INF, 0))


def first_plane_missing(tiny):
    first = next(iter(read(tiny, "psfsub").values()))
    assert np.isnan(first["SCI"][0]).all() and np.isnan(first["ERR"][0]).all()
    assert np.isfinite(first["SCI"][1:]).all() and np.isfinite(first["ERR"][1:]).all()
    assert np.all(first["DQ"][0] & 1)
    (i2d,) = read(tiny, "i2d").values()
    assert np.isfinite(i2d["SCI"]).mean() > 0.7 and not (i2d["CON"] & 1).any()


@odd(
    "jw09100001001_03108_00001_nrcalong: no usable pixel in integration 1, which will be NaN",
    check=first_plane_missing,
)
def first_science_integration_nan(tiny):
    tiny.edit(tiny.science[0], SCI=put(NAN, 0))


@odd(
    "jw09100001001_03108_00001_nrcalong: no usable pixel in integration 1, which will be NaN",
    check=first_plane_missing,
)
def first_science_integration_nan_align_first(tiny):
    tiny.edit(tiny.science[0], SCI=put(NAN, 0))
    return ["--align", "first"]


@odd()
def inf_in_science(tiny):
    tiny.edit(tiny.science[0], SCI=put(-INF, 0, 5, 6))


@odd()
def inf_in_a_reference(tiny):
    tiny.edit(tiny.psf[0], SCI=put(INF, 0, 5, 6))


def flagged(tiny):
    whole(tiny)
    second = list(read(tiny, "psfsub").values())[1]
    assert second["DQ"][0, 5, 6] & 1 and not second["DQ"][1, 5, 6] & 1


@odd(check=flagged)
def inf_in_one_of_two_integrations(tiny):
    tiny.edit(tiny.science[1], SCI=put(INF, 0, 5, 6), DQ=put(0, slice(None), 5, 6))


@odd()
def inf_in_err_and_variances(tiny):
    tiny.edit(ERR=put(INF, 0, 5, 6), VAR_RNOISE=put(INF, 0, 7, 6), VAR_POISSON=put(INF, 0, 8, 6))


@odd("resample: 2 of 2 exposures without VAR_RNOISE; the weight of their pixels is 1")
def no_variances(tiny):
    for name in VARIANCES:
        tiny.edit(**{name: None})


@odd("resample: 2 of 2 exposures without VAR_RNOISE; the weight of their pixels is 1")
def empty_variances(tiny):
    for name in VARIANCES:
        tiny.edit(**{name: lambda a: None})


@odd(*["has no DQ data; taking all pixels as good"] * 5)
def no_dq(tiny):
    tiny.edit(SCI=np.nan_to_num)
    tiny.edit(DQ=None)


@odd(
    "jw09100001001.*no polygon in S_REGION; its footprint is taken from the GWCS",
    "jw09100002001.*no polygon in S_REGION; its footprint is taken from the GWCS",
)
def no_s_region(tiny):
    tiny.edit(S_REGION=None)


@odd()
def no_wcs_in_the_references(tiny):
    tiny.edit(*tiny.psf, ASDF=None)


@odd()
def quirks_of_real_files(tiny):
    """ERR in float64, edges of NaN without a flag, an INT_TIMES of other length or none."""
    tiny.edit(
        ERR=lambda a: a.astype("f8"),
        SCI=lambda a: put(NAN, ..., slice(0, 2))(put(NAN, slice(None), 0)(a)),
    )
    tiny.edit(tiny.science[0], INT_TIMES=lambda t: np.concatenate([t] * 5))
    tiny.edit(tiny.psf[0], INT_TIMES=None)
    tiny.edit(tiny.psf[1], AREA=None)


def built_in(tiny):
    whole(tiny)
    for path in tiny.out.glob("*_psfalign.fits"):
        assert fits.getval(path, "R_PSFMAS") == "N/A"


@odd(check=built_in)
def no_psfmask(tiny):
    pass


def test_no_psfmask_is_logged(tiny, capsys, monkeypatch):
    monkeypatch.delenv("CRDS_PATH", raising=False)
    assert tiny.command("--save", "psfsub") == 0
    assert re.search(
        "psfmask: none given and .*; built in: all ones, every pixel counts",
        capsys.readouterr().err,
    )


@odd(
    "3 of 15 alignments did not converge .integration/reference 1/3, 2/3, 3/3",
    "2 of 10 alignments did not converge .integration/reference 1/3, 2/3",
)
def a_constant_reference(tiny):
    tiny.edit(tiny.psf[1], SCI=put(0.0))


def test_several_science_exposures_of_different_lengths():
    assert len(set(N_SCIENCE)) > 1 and len(set(N_REFERENCES)) > 1


def test_an_error_in_the_second_product_leaves_the_first_whole(tiny, capsys):
    def change(content):
        first, *_ = content["products"]
        second = json.loads(json.dumps(first)) | {"name": "second"}
        first["members"] = [m for m in first["members"] if m["expname"] != tiny.science[1].name]
        second["members"] = [m for m in second["members"] if m["expname"] != tiny.science[0].name]
        content["products"] = [first, second]

    tiny.edit_asn(change)
    tiny.edit(tiny.science[1], FILTER="F335M")
    assert tiny.command(*OPTIONS) == 3
    assert (
        f"{tiny.psf[0].name}: FILTER is F444W, but {tiny.science[1].name} has F335M"
        in only_error(capsys.readouterr().err)
    )
    left = tiny.files()
    for name in left:
        complete(tiny.out / name)
    assert not [name for name in left if "second" in name or not name.endswith(".fits")]
