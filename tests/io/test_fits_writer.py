import errno
import io
import os
from contextlib import nullcontext

import numpy as np
import pytest
from astropy.io import fits

from gpucoron.errors import OutputError
from gpucoron.io import fits_writer
from gpucoron.io.fits_writer import Hdu, datasum, encode_checksum, output_file, write_hdu
from gpucoron.io.headers import Cards, card_text, card_value


def write(path, *hdus):
    with output_file(path) as file:
        for hdu in hdus:
            write_hdu(file, hdu)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (2, 3, 41, 17), (720,)])
@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4", "int32", "uint32"])
def test_images_come_back(tmp_path, shape, dtype):
    random = np.random.default_rng(3)
    array = (random.random(shape) * 2**31).astype(dtype)
    if array.dtype.kind == "u":
        array.flat[0] = 2**32 - 1
    array.setflags(write=False)
    write(tmp_path / "x.fits", Hdu(""), Hdu("SCI", array))
    with fits.open(tmp_path / "x.fits", checksum=True) as hdus:
        hdus.verify("exception")
        expected = array.astype("float32") if array.dtype.kind == "f" else array
        assert hdus["SCI"].data.dtype.name == expected.dtype.newbyteorder("=").name
        np.testing.assert_array_equal(hdus["SCI"].data, expected)
        assert hdus["SCI"].ver == 1


@pytest.mark.filterwarnings("error")
def test_non_contiguous_and_nan(tmp_path):
    array = np.arange(60.0, dtype=np.float32).reshape(3, 4, 5)[:, ::2, ::-1]
    array[0, 0, 0] = np.nan
    write(tmp_path / "x.fits", Hdu(""), Hdu("SCI", array))
    with fits.open(tmp_path / "x.fits", checksum=True) as hdus:
        np.testing.assert_array_equal(hdus[1].data, array)


@pytest.mark.filterwarnings("error")
def test_tables_come_back(tmp_path):
    table = np.zeros(3, dtype=[("n", "i4"), ("t", "f8"), ("b", "?"), ("s", "S5"), ("h", "i2")])
    table["n"], table["t"], table["b"] = [1, -2, 3], [0.5, np.nan, 1e300], [True, False, True]
    table["s"] = [b"ab", b"", b"abcde"]
    write(tmp_path / "x.fits", Hdu(""), Hdu("T", table, units={"t": "s"}))
    with fits.open(tmp_path / "x.fits", checksum=True) as hdus:
        data = hdus["T"].data
        for name in table.dtype.names:
            np.testing.assert_array_equal(
                data[name], np.char.decode(table[name]) if name == "s" else table[name]
            )
        assert hdus["T"].columns["t"].unit == "s"


def test_datasum_is_the_standards():
    data = np.random.default_rng(1).integers(0, 256, 4321, dtype=np.uint8)
    padded = np.append(data, np.zeros(-len(data) % 4, np.uint8))
    expected = int(fits.ImageHDU()._compute_checksum(padded))
    assert datasum(data.tobytes()) == expected


@pytest.mark.parametrize("total", [0, 1, 0xFFFFFFFF, 0x12345678, 0x3B3B3B3B, 2503531142])
def test_checksum_is_the_standards(total):
    assert encode_checksum(total) == fits.ImageHDU()._char_encode(~np.uint32(total))


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*x\.fits: No space left"):
        with output_file(tmp_path / "x.fits") as file:
            file.write(b"begun")
            raise OSError(28, os.strerror(28))
    with pytest.raises(KeyboardInterrupt):
        with output_file(tmp_path / "x.fits"):
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_failure_keeps_the_old_file(tmp_path):
    (tmp_path / "x.fits").write_bytes(b"old")
    with pytest.raises(RuntimeError), output_file(tmp_path / "x.fits") as file:
        file.write(b"new")
        raise RuntimeError
    assert (tmp_path / "x.fits").read_bytes() == b"old"


def test_no_overwrite(tmp_path):
    (tmp_path / "x.fits").write_bytes(b"old")
    with pytest.raises(OutputError, match="exists; allow overwriting"):
        with output_file(tmp_path / "x.fits", overwrite=False):
            pass
    with pytest.raises(OutputError, match=r"cannot write .*: No such file"):
        with output_file(tmp_path / "nowhere" / "x.fits"):
            pass


def test_hidden_until_complete(tmp_path):
    with output_file(tmp_path / "x.fits") as file:
        file.write(b"0")
        (name,) = [p.name for p in tmp_path.iterdir()]
        assert name.startswith(".") and not name.endswith(".fits")
    assert [p.name for p in tmp_path.iterdir()] == ["x.fits"]


def test_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    sync, rename = fits_writer._sync, os.replace
    monkeypatch.setattr(fits_writer, "_sync", lambda fd: calls.append(os.fstat(fd)) or sync(fd))
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

    monkeypatch.setattr(fits_writer, "_sync", sync)
    expected = pytest.raises(OutputError, match=os.strerror(number)) if fails else nullcontext()
    with expected, output_file(tmp_path / "a.fits") as file:
        file.write(b"x")
    assert [p.name for p in tmp_path.iterdir()] == ([] if fails else ["a.fits"])


@pytest.mark.parametrize(
    "value",
    [
        1,
        -7,
        True,
        False,
        1.5,
        1e-14,
        -2.5e300,
        "",
        "a",
        "it's",
        "x" * 66,
        "x" * 68,
        "x" * 69,
        "x" * 200,
        "'" * 40,
        "a&",
        2**40,
    ],
)
@pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")
def test_cards_as_astropy_writes_them(value):
    text = card_text("KEYWORD", value, "what it is")
    if value != "":  # which astropy does not align
        assert text == str(fits.Card("KEYWORD", value, "what it is"))
    back = card_value(text)
    assert type(back) is type(value) and back == value


def test_cards_hold_what_ascii_cannot():
    assert "caf\\xe9\\x0a" in card_text("KEYWORD", "café\n")


def test_cards_edit():
    header = fits.Header(
        [
            ("NAXIS", 0),
            ("TELESCOP", "JWST"),
            ("S_JUMP", "COMPLETE", "jump"),
            ("S_PHOTOM", "SKIPPED"),
            ("LONG", "y" * 150, "long"),
            ("CHECKSUM", "0"),
        ]
    )
    header["HISTORY"] = "first"
    cards = Cards(header)
    cards.set("S_KLIP", "COMPLETE", "klip", "Calibration step information")
    cards.set("S_JUMP", "SKIPPED")
    cards.remove(["LONG", "ABSENT"])
    cards.history(["z" * 100])
    result = fits.Header.fromstring(cards.text)
    assert list(result)[:2] == ["TELESCOP", "S_JUMP"]
    assert list(result).index("S_KLIP") < list(result).index("S_PHOTOM")
    assert result["S_JUMP"] == "SKIPPED" and result.comments["S_JUMP"] == "jump"
    assert "LONG" not in result and "NAXIS" not in result and "CHECKSUM" not in result
    assert list(result["HISTORY"]) == ["first", "z" * 72, "z" * 28]
    assert cards.values == {
        "TELESCOP": "JWST",
        "S_JUMP": "SKIPPED",
        "S_KLIP": "COMPLETE",
        "S_PHOTOM": "SKIPPED",
    }


def test_headers_fill_whole_blocks():
    buffer = io.BytesIO()
    write_hdu(buffer, Hdu(""))
    assert len(buffer.getvalue()) == 2880
