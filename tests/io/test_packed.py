"""Compressed files: what they hold is what the plain file holds; damaged ones are refused."""

import gzip

import numpy as np
import pytest
from astropy.io import fits

from gpucoron.core.stack import VARIANCES
from gpucoron.errors import ExposureError, MaskError
from gpucoron.io.exposures import read_exposure
from gpucoron.io.fits import packed
from gpucoron.io.fits.checksums import check_sums
from gpucoron.io.fits.reading import open_fits
from gpucoron.io.psfmask import read_psfmask
from tests.helpers.tiny_sets import SHAPE, simulated


@pytest.fixture(scope="module")
def plain():
    return simulated().made.science[0]


def tiled(source, path, **options):
    """Compress the images of a file tile by tile; floats without loss if that is possible."""
    with fits.open(source) as hdus:
        made = fits.HDUList([fits.PrimaryHDU(header=hdus[0].header)])
        for hdu in hdus[1:]:
            if isinstance(hdu, fits.ImageHDU):
                own = {"quantize_level": 0.0, **options}
                if hdu.data.dtype.kind == "f" and not own["quantize_level"]:
                    own["compression_type"] = "GZIP_2"
                made.append(fits.CompImageHDU(hdu.data, hdu.header, name=hdu.name, **own))
            else:
                made.append(hdu.copy())
        made.writeto(path, checksum=True)
    return path


def same(found, expected, tolerance=0.0):
    for name in ("data", "err", "dq", *VARIANCES):
        ours, theirs = getattr(found.stack, name), getattr(expected.stack, name)
        good = np.isfinite(theirs)
        np.testing.assert_array_equal(np.isfinite(ours), good)
        np.testing.assert_allclose(ours[good], theirs[good], atol=tolerance * np.std(theirs[good]))
    np.testing.assert_array_equal(found.stack.dq, expected.stack.dq)
    assert (found.meta, found.asdf_bytes) == (expected.meta, expected.asdf_bytes)
    assert (found.root, found.shape) == (expected.root, expected.shape)
    assert found.headers.keys() == expected.headers.keys()
    for name, header in expected.headers.items():
        there = {k for k in header if k not in ("CHECKSUM", "DATASUM", "")}
        assert {k: found.headers[name][k] for k in there} == {k: header[k] for k in there}


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1"])
def test_tiles(kind, plain, tmp_path):
    path = tiled(plain, tmp_path / plain.name, compression_type=kind, **_tiles(kind))
    same(read_exposure(path, "science"), read_exposure(plain, "science"))
    with fits.open(path) as hdus:  # the case is one
        assert all(isinstance(hdus[n], fits.CompImageHDU) for n in ("SCI", "DQ", "VAR_FLAT"))
    check_sums(open_fits(path, ExposureError))
    content = bytearray(path.read_bytes())
    content[-3000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ExposureError, match="do not go with the checksum"):
        check_sums(open_fits(path, ExposureError))


def _tiles(kind):
    return {"tile_shape": (1, 18, 20)} if kind == "HCOMPRESS_1" else {}


def test_quantized_tiles(plain, tmp_path):
    path = tiled(plain, tmp_path / plain.name, compression_type="RICE_1", quantize_level=64.0)
    same(read_exposure(path, "science"), read_exposure(plain, "science"), tolerance=0.05)


def test_gzip(plain, tmp_path):
    path, content = tmp_path / f"{plain.name}.gz", plain.read_bytes()
    for packed_bytes in (
        gzip.compress(content),
        gzip.compress(content) + bytes(2880),  # padding, as on tapes
        gzip.compress(content[:5000]) + gzip.compress(content[5000:]),
        gzip.compress(tiled(plain, tmp_path / "t.fits", compression_type="RICE_1").read_bytes()),
    ):
        path.write_bytes(packed_bytes)
        same(read_exposure(path, "science"), read_exposure(plain, "science"))
    misnamed = tmp_path / plain.name
    misnamed.write_bytes(gzip.compress(content))
    same(read_exposure(misnamed, "science"), read_exposure(plain, "science"))


@pytest.mark.parametrize("kind", ["PLIO_1", "RICE_1", "HCOMPRESS_1", None])
def test_a_psfmask(kind, tmp_path):
    mask = (np.random.default_rng(1).random(SHAPE) > 0.2).astype(np.int32)
    path = tmp_path / "mask.fits.gz"
    hdu = fits.CompImageHDU(mask, compression_type=kind) if kind else fits.ImageHDU(mask)
    hdu.name = "SCI"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    np.testing.assert_array_equal(read_psfmask(path, SHAPE), mask)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(MaskError, match="mask.fits.gz: is compressed with gzip and cut short"):
        read_psfmask(path, SHAPE)


BAD_GZIP = {
    "cut short": (lambda c: c[: len(c) // 2], "cut short after [0-9]+ unpacked bytes"),
    "without its end": (lambda c: c[:-1], "cut short after"),
    "another byte": (lambda c: c[:2000] + bytes([c[2000] ^ 255]) + c[2001:], "and damaged: "),
    "another sum": (lambda c: c[:-8] + b"abcd" + c[-4:], "and damaged: "),
    "more after it": (lambda c: c + b"and so on", "and damaged: "),
    "nothing in it": (lambda c: gzip.compress(b""), "not a FITS file: is empty"),
    "gzip in gzip": (lambda c: gzip.compress(c), "not a FITS file: begins with"),
    "a bomb": (lambda c: gzip.compress(bytes(8 << 20)), "unpacks to more than 2 MiB, expected le"),
    "bombs": (lambda c: gzip.compress(bytes(1 << 20)) * 9, "unpacks to more than 2 MiB"),
}


@pytest.mark.parametrize("name", BAD_GZIP)
def test_gzip_that_is_refused(name, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_ALWAYS", 2 << 20)
    change, message = BAD_GZIP[name]
    path = tmp_path / "a_calints.fits.gz"
    path.write_bytes(change(gzip.compress(plain.read_bytes())))
    with pytest.raises(ExposureError, match=f"a_calints.fits.gz: .*{message}") as caught:
        read_exposure(path, "science")
    assert len(str(caught.value).splitlines()) == 1


def bomb_in_a_tile(header, data):
    """A GZIP_1 image of which one tile unpacks to much more than a tile."""
    tile = gzip.compress(bytes(64 << 20))
    rows = np.array([[len(tile), 0]] * header["NAXIS2"], ">i4").tobytes()
    header["PCOUNT"], header["NAXIS1"] = len(tile), 8
    header["TFIELDS"] = 1
    return header, rows + tile


BAD_TILES = {
    "a terabyte": ({"ZNAXIS1": 2**20, "ZNAXIS2": 2**20}, "expected at most"),
    "an image of no size": ({"ZNAXIS1": 0}, "ZNAXIS1 is 0, expected an integer"),
    "tiles of no size": ({"ZTILE1": 0}, "ZTILE1 is 0, expected an integer from 1"),
    "another number of tiles": ({"ZTILE2": 2}, "rows, expected"),
    "an unknown method": ({"ZCMPTYPE": "ZSTD_1"}, "ZCMPTYPE is ZSTD_1, expected one of RICE_1"),
    "an unknown type": ({"ZBITPIX": 12}, "ZBITPIX is 12, expected"),
    "blocks of no size": ({"ZNAME1": "BLOCKSIZE", "ZVAL1": 0}, "ZVAL1 is 0, expected one of"),
    "a heap elsewhere": ({"THEAP": 10**9}, "THEAP is 1000000000, expected"),
    "a column of text": ({"TFORM1": "1PA(9)"}, "expected numbers"),
    "a bomb": (bomb_in_a_tile, "a tile is damaged, or more than"),
}


@pytest.mark.parametrize("name", BAD_TILES)
def test_tiles_that_are_refused(name, plain, tmp_path):
    path = tiled(plain, tmp_path / plain.name, compression_type="GZIP_1", quantize_level=0.0)
    change, message = BAD_TILES[name]
    with fits.open(path, disable_image_compression=True) as hdus:
        header, place = hdus["DQ"].header.copy(), hdus["DQ"].fileinfo()
        content = path.read_bytes()
    before, data = (
        content[: place["hdrLoc"]],
        content[place["datLoc"] : place["datLoc"] + place["datSpan"]],
    )
    if callable(change):
        header, data = change(header, data)
    else:
        header.update(change)
    data = data.ljust(-(-len(data) // 2880) * 2880, b"\0")
    after = content[place["datLoc"] + place["datSpan"] :]
    path.write_bytes(before + header.tostring().encode() + data + after)
    with pytest.raises(ExposureError, match=f"DQ is a compressed image that cannot .*{message}"):
        read_exposure(path, "science")


def test_the_limit_goes_with_the_size():
    assert packed.unpacked_limit(1) == 256 << 20
    assert packed.unpacked_limit(1 << 30) == 50 << 30
