import os

import numpy as np
import pytest
from astropy.io import fits

from gpucoron.errors import InputError, OutputError
from gpucoron.io import files
from gpucoron.io.products import PsfalignWriter
from tests.io.product_tools import Set

SHAPE = (3, 4, 16, 20)


@pytest.fixture(scope="module")
def small(shared_data):
    return Set(shared_data / "nircam_small")


@pytest.fixture
def planes():
    random = np.random.default_rng(8)
    return random.normal(size=SHAPE).astype("f4"), random.random(SHAPE, dtype="f4")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_psfalign_any_order_same_file(small, tmp_path, planes, order, batch):
    data, err = planes
    with PsfalignWriter(tmp_path / "x.fits", small.psf, SHAPE, small.provenance) as writer:
        for sci in order:
            for ref in range(0, 4, batch):
                part = slice(ref, ref + batch)
                writer.write(sci, data[sci, part].astype("f8"), err[sci, part], ref_index=ref)
        writer.close()
    with fits.open(tmp_path / "x.fits", checksum=True) as hdus:
        np.testing.assert_array_equal(hdus["SCI"].data, data)
        np.testing.assert_array_equal(hdus["ERR"].data, err)
        assert hdus["DQ"].data.dtype == np.uint32 and not hdus["DQ"].data.any()
    assert [p.name for p in tmp_path.iterdir()] == ["x.fits"]


def test_psfalign_from_threads(small, tmp_path, planes):
    from concurrent.futures import ThreadPoolExecutor

    data, err = planes
    with PsfalignWriter(tmp_path / "x.fits", small.psf, SHAPE, small.provenance) as writer:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda i: writer.write(i, data[i], err[i]), range(3)))
        writer.close()
    with fits.open(tmp_path / "x.fits") as hdus:
        np.testing.assert_array_equal(hdus["SCI"].data, data)


def test_psfalign_leaves_nothing_when_left(small, tmp_path, planes):
    data, err = planes
    with PsfalignWriter(tmp_path / "x.fits", small.psf, SHAPE, small.provenance) as writer:
        writer.write(0, data[0], err[0])
    with (
        pytest.raises(RuntimeError),
        PsfalignWriter(tmp_path / "x.fits", small.psf, SHAPE, small.provenance),
    ):
        raise RuntimeError
    writer = PsfalignWriter(tmp_path / "x.fits", small.psf, SHAPE, small.provenance)
    writer.write(0, data[0], err[0])
    with pytest.raises(OutputError, match="8 of 12 aligned images were never computed"):
        writer.close()
    with pytest.raises(InputError, match="closed"):
        writer.write(1, data[1], err[1])
    assert not list(tmp_path.iterdir())


def test_psfalign_refuses_what_does_not_fit(small, tmp_path, planes):
    data, err = planes
    with PsfalignWriter(tmp_path / "x.fits", small.psf, SHAPE, small.provenance) as writer:
        for call in (
            (3, data[0], None),
            (0, data[0, :, :8], None),
            (-1, data[0], None),
            (0, data[0], err[0, :2]),
        ):
            with pytest.raises(InputError, match="do not fit"):
                writer.write(*call)
        with pytest.raises(InputError, match="do not fit"):
            writer.write(0, data[0], None, ref_index=1)
        writer.write(0, data[0], None)
        with pytest.raises(InputError, match="written before"):
            writer.write(0, data[0, :1], None)
    with pytest.raises(InputError, match="psfalign has shape"):
        PsfalignWriter(tmp_path / "x.fits", small.psf, (4, 4), small.provenance)


def test_psfalign_on_the_disk_before_it_has_its_name(small, tmp_path, planes, monkeypatch):
    path, calls = tmp_path / "a_psfalign.fits", []
    sync = files._sync
    monkeypatch.setattr(
        files,
        "_sync",
        lambda fd: (
            calls.append((os.fstat(fd).st_ino, os.fstat(fd).st_size, path.exists())) or sync(fd)
        ),
    )
    data, err = planes
    with PsfalignWriter(path, small.psf, SHAPE, small.provenance) as writer:
        for sci in range(3):
            writer.write(sci, data[sci], err[sci])
        writer.close()
    assert calls == [(path.stat().st_ino, path.stat().st_size, False)]


def test_psfalign_disk_full(small, tmp_path, planes, monkeypatch):
    data, err = planes
    big = (10**6, 10**3, 1000, 1000)
    with pytest.raises(OutputError, match="GiB free"):
        PsfalignWriter(tmp_path / "x.fits", small.psf, big, small.provenance)
    writer = PsfalignWriter(tmp_path / "x.fits", small.psf, SHAPE, small.provenance)

    def full(*args):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(OutputError, match=r"x\.fits: No space left on device"):
        writer.write(0, data[0], err[0])
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="No such file"):
        PsfalignWriter(tmp_path / "no" / "x.fits", small.psf, SHAPE, small.provenance)
