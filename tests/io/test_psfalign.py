import os
from concurrent.futures import ThreadPoolExecutor

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


@pytest.fixture
def writer(small, tmp_path):
    """Return a function that opens x.fits to be written."""
    return lambda shape=SHAPE, path="x.fits": PsfalignWriter(
        tmp_path / path, small.psf, shape, small.provenance
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_psfalign_any_order_same_file(writer, tmp_path, planes, order, batch):
    data, err = planes
    dq = (data > 1).astype(np.uint32) * np.uint32(1 + 2**31)
    with writer() as file:
        for sci in order:
            for ref in range(0, 4, batch):
                part = sci, slice(ref, ref + batch)
                file.write(sci, data[part].astype("f8"), err[part], ref, dq[part])
        file.close()
    with fits.open(tmp_path / "x.fits", checksum=True) as hdus:
        np.testing.assert_array_equal(hdus["SCI"].data, data)
        np.testing.assert_array_equal(hdus["ERR"].data, err)
        assert hdus["DQ"].data.dtype == np.uint32
        np.testing.assert_array_equal(hdus["DQ"].data, dq)
    assert [p.name for p in tmp_path.iterdir()] == ["x.fits"]


def test_psfalign_from_threads(writer, tmp_path, planes):
    data, err = planes
    with writer() as file:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda i: file.write(i, data[i], err[i]), range(3)))
        file.close()
    with fits.open(tmp_path / "x.fits") as hdus:
        np.testing.assert_array_equal(hdus["SCI"].data, data)


def test_psfalign_leaves_nothing_when_left(writer, tmp_path, planes):
    data, err = planes
    with writer() as file:
        file.write(0, data[0], err[0])
    with pytest.raises(RuntimeError), writer():
        raise RuntimeError
    file = writer()
    file.write(0, data[0], err[0])
    with pytest.raises(OutputError, match="8 of 12 aligned images were never computed"):
        file.close()
    with pytest.raises(InputError, match="closed"):
        file.write(1, data[1], err[1])
    assert not list(tmp_path.iterdir())


def test_psfalign_refuses_what_does_not_fit(writer, planes):
    (data, *_), (err, *_) = planes
    with writer() as file:
        for sci, images, errors, ref in (
            *((3, data, None, 0), (0, data[:, :8], None, 0), (-1, data, None, 0)),
            *((0, data, err[:2], 0), (0, data, None, 1)),
        ):
            with pytest.raises(InputError, match="do not fit"):
                file.write(sci, images, errors, ref_index=ref)
        file.write(0, data, None)
        with pytest.raises(InputError, match="written before"):
            file.write(0, data[:1], None)
    with pytest.raises(InputError, match="psfalign has shape"):
        writer((4, 4))


def test_psfalign_on_the_disk_before_it_has_its_name(writer, tmp_path, planes, monkeypatch):
    path, calls, sync = tmp_path / "x.fits", [], files._sync

    def noted(fd):
        calls.append((os.fstat(fd).st_ino, os.fstat(fd).st_size, path.exists()))
        return sync(fd)

    monkeypatch.setattr(files, "_sync", noted)
    with writer() as file:
        for sci, (data, err) in enumerate(zip(*planes, strict=True)):
            file.write(sci, data, err)
        file.close()
    assert calls == [(path.stat().st_ino, path.stat().st_size, False)]


def test_psfalign_disk_full(writer, tmp_path, planes, monkeypatch):
    data, err = planes
    with pytest.raises(OutputError, match="GiB free"):
        writer((10**6, 10**3, 1000, 1000))
    file = writer()

    def full(*args):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(OutputError, match=r"x\.fits: No space left on device"):
        file.write(0, data[0], err[0])
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="No such file"):
        writer(path="no/x.fits")
