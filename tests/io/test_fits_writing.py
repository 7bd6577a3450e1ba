"""FITS files as they are written: arrays, keywords, checksums; complete or not at all."""

import errno
import os
import sys
import threading
from contextlib import nullcontext

import numpy as np
import pytest
from astropy.io import fits

from gpucoron.errors import InputError, OutputError
from gpucoron.io import files
from gpucoron.io.files import output_file
from gpucoron.io.fits.checksums import summed_header
from gpucoron.io.fits.headers import add_history, header_values, inherited, layout, set_keyword
from gpucoron.io.fits.reading import open_fits
from gpucoron.io.fits.writing import Hdu, write_fits


def written(path, *hdus):
    """Write and open a file; astropy warns where its checksums are wrong."""
    write_fits(path, [Hdu(""), *hdus])
    return fits.open(path, checksum=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (2, 3, 41, 17), (720,)])
@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4", "int32", "uint32"])
def test_images_come_back(tmp_path, shape, dtype):
    random = np.random.default_rng(3)
    array = (random.random(shape) * 2**31).astype(dtype)
    if array.dtype.kind == "u":
        array.flat[0] = 2**32 - 1
    array.setflags(write=False)
    with written(tmp_path / "x.fits", Hdu("SCI", array)) as hdus:
        hdus.verify("exception")
        expected = array.astype("float32") if array.dtype.kind == "f" else array
        assert hdus["SCI"].data.dtype.name == expected.dtype.newbyteorder("=").name
        np.testing.assert_array_equal(hdus["SCI"].data, expected)
        assert hdus["SCI"].ver == 1


@pytest.mark.filterwarnings("error")
def test_non_contiguous_and_nan(tmp_path):
    array = np.arange(60.0, dtype=np.float32).reshape(3, 4, 5)[:, ::2, ::-1]
    array[0, 0, 0] = np.nan
    with written(tmp_path / "x.fits", Hdu("SCI", array)) as hdus:
        np.testing.assert_array_equal(hdus[1].data, array)


@pytest.mark.filterwarnings("error")
def test_tables_come_back(tmp_path):
    table = np.zeros(3, dtype=[("n", "i4"), ("t", "f8"), ("b", "?"), ("s", "S5"), ("h", "i2")])
    table["n"], table["t"], table["b"] = [1, -2, 3], [0.5, np.nan, 1e300], [True, False, True]
    table["s"] = [b"ab", b"", b"abcde"]
    with written(tmp_path / "x.fits", Hdu("T", table, units={"t": "s"})) as hdus:
        for name in table.dtype.names:
            expected = np.char.decode(table[name]) if name == "s" else table[name]
            np.testing.assert_array_equal(hdus["T"].data[name], expected)
        assert hdus["T"].columns["t"].unit == "s"


@pytest.mark.parametrize("seed", range(5))
def test_checksums_made_for_the_sum_of_the_data(seed):
    """As psfalign has them, whose data are not in memory."""
    data = np.random.default_rng(seed).integers(-(2**31), 2**31, (2, 3, 99)).astype(">i4")
    hdu = fits.ImageHDU(data, name="X")
    content = summed_header(hdu.header, int(data.view(">u4").sum(dtype="u8")) % (2**32 - 1))
    again = fits.ImageHDU.fromstring(content + data.tobytes().ljust(2880, b"\0"))
    assert again.verify_checksum() == again.verify_datasum() == 1
    hdu.add_checksum(when=again.header.comments["DATASUM"])
    assert [hdu.header[k] == again.header[k] for k in ("CHECKSUM", "DATASUM")] == [True, True]


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4", "int32", "uint32"])
def test_arrays_are_not_touched_while_they_are_written(tmp_path, dtype):
    """Not even for a moment: klip reads them in another thread."""
    array = np.arange(1, 1 + (1 << 18)).astype(dtype)
    expected, seen, done = array.copy(), [], threading.Event()

    def look():
        while not done.is_set():
            seen.append(np.array_equal(array, expected))

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=look)
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        for _ in range(3):
            write_fits(tmp_path / "x.fits", [Hdu(""), Hdu("SCI", array)])
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert len(seen) > 3 and all(seen)


FULL = OSError(28, os.strerror(28))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "failure, error, match",
    [
        (FULL, OutputError, r"cannot write .*x\.fits: No space left"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_failure_leaves_what_there_was(tmp_path, old, failure, error, match):
    if old:
        (tmp_path / "x.fits").write_bytes(b"old")
    with pytest.raises(error, match=match), output_file(tmp_path / "x.fits") as file:
        file.write(b"new")
        raise failure
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"] * old


def test_no_overwrite(tmp_path):
    (tmp_path / "x.fits").write_bytes(b"old")
    for path, match in (
        (tmp_path / "x.fits", "exists; allow overwriting"),
        (tmp_path / "nowhere" / "x.fits", r"cannot write .*: No such file"),
    ):
        with pytest.raises(OutputError, match=match), output_file(path, overwrite=False):
            pass


def test_hidden_until_complete(tmp_path):
    with output_file(tmp_path / "x.fits") as file:
        file.write(b"0")
        (name,) = [p.name for p in tmp_path.iterdir()]
        assert name.startswith(".") and not name.endswith(".fits")
    assert [p.name for p in tmp_path.iterdir()] == ["x.fits"]


def test_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    sync, rename = files._sync, os.replace
    monkeypatch.setattr(files, "_sync", lambda fd: calls.append(os.fstat(fd)) or sync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append(os.stat(a)) or rename(a, b))
    with output_file(tmp_path / "a.fits") as file:
        file.write(b"x" * 5000)
    synced, renamed = calls
    assert (synced.st_ino, synced.st_size) == (renamed.st_ino, renamed.st_size)
    assert renamed.st_size == 5000


@pytest.mark.parametrize(
    "number, fails",
    [(errno.EIO, True), (errno.EDQUOT, True), (errno.EINVAL, False), (errno.ENOTSUP, False)],
)
def test_a_disk_that_fails_at_last(tmp_path, monkeypatch, number, fails):
    def sync(fd):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "_sync", sync)
    expected = pytest.raises(OutputError, match=os.strerror(number)) if fails else nullcontext()
    with expected, output_file(tmp_path / "a.fits") as file:
        file.write(b"x")
    assert [p.name for p in tmp_path.iterdir()] == ([] if fails else ["a.fits"])


# ---- keywords


@pytest.mark.parametrize("value", [1, True, 1.5, -2.5e300, "", "it's", "x" * 200, "a&", 2**40])
def test_values_come_back(tmp_path, value):
    header = fits.Header()
    set_keyword(header, "KEYWORD", value, "what it is")
    write_fits(tmp_path / "x.fits", [Hdu("", header=header)])
    back = header_values(fits.getheader(tmp_path / "x.fits"))["KEYWORD"]
    assert type(back) is type(value) and back == value


def test_texts_hold_what_ascii_cannot():
    header = fits.Header()
    set_keyword(header, "KEYWORD", "caf\xe9\n")
    assert header["KEYWORD"] == "caf\\xe9\\x0a"


def test_values_as_numpy_can_take_them():
    header = fits.Header([("A", None), ("B", 2**63), ("C", 5), ("HISTORY", "x")])
    header.append(("C", 6), end=True)
    assert header_values(header) == {"A": None, "B": 2.0**63, "C": 5}


def test_headers_edit():
    cards = [("NAXIS", 0), ("TELESCOP", "JWST"), ("S_JUMP", "COMPLETE", "jump")]
    cards += [("S_PHOTOM", "SKIPPED"), ("LONG", "y" * 150, "long"), ("CHECKSUM", "0")]
    source = fits.Header(cards)
    source["HISTORY"] = "first"
    before = source.tostring()
    header = inherited(source)
    section = "Calibration step information"
    set_keyword(header, "S_KLIP", "COMPLETE", "klip", section=section)
    set_keyword(header, "S_JUMP", "SKIPPED")
    add_history(header, ["z" * 100])
    assert list(header) == [
        *("TELESCOP", "S_JUMP", "", "", "", "S_KLIP", "S_PHOTOM", "LONG"),
        *("HISTORY", "HISTORY", "HISTORY"),
    ]
    assert list(header[""]) == ["", section, ""]
    assert header["S_JUMP"] == "SKIPPED" and header.comments["S_JUMP"] == "jump"
    assert list(header["HISTORY"]) == ["first", "z" * 72, "z" * 28]
    assert list(layout(source)) == ["NAXIS", "CHECKSUM"] and source.tostring() == before


def test_odd_cards_are_passed_on(tmp_path):
    """HIERARCH, CONTINUE, keywords twice or in lower case; what is no card goes, with a warning."""
    cards = (
        "HIERARCH ESO DET CHIP = 5|lower   = 'x'|LONG    = 'one &'|CONTINUE  'two' / of it|"
        "TWICE   =                    1|TWICE   =                    2|NUMBER  = 1.5D3|"
        "PART    = 'axis: 2'|BAD     = 'unfinished|COMMENT = a comment|END"
    )
    content = fits.PrimaryHDU().header.tostring(endcard=False, padding=False)
    content += "".join(card.ljust(80) for card in cards.split("|"))
    path = tmp_path / "in.fits"
    path.write_bytes(content.ljust(2880).encode())
    for _ in range(2):
        header = open_fits(path, InputError).hdus[0].header
        path = tmp_path / "out.fits"
        write_fits(path, [Hdu("", header=inherited(header))])
    header = fits.getheader(path)
    values = {"ESO DET CHIP": 5, "LOWER": "x", "LONG": "one two", "NUMBER": 1500.0}
    assert header_values(header).items() >= {**values, "TWICE": 1, "PART": "axis: 2"}.items()
    assert header["TWICE", 1] == 2 and "BAD" not in header
    assert header.comments["LONG"] == "of it" and list(header["COMMENT"]) == ["= a comment"]
