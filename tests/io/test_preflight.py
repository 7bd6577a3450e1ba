"""Names of products, and what is checked before they are written."""

import os

import pytest

from gpucoron.errors import OutputError
from gpucoron.io.products import (
    preflight,
    product_path,
)


def test_names():
    for words, name in (
        (("jw1_nrcalong", "c1001", "psfsub"), "jw1_nrcalong_c1001_psfsub.fits"),
        (("jw1_t001", "c1001", "i2d"), "jw1_t001_i2d.fits"),
        (("jw1_nrcalong", None, "crfints"), "jw1_nrcalong_crfints.fits"),
    ):
        assert product_path("out", *words).name == name
    for name in ("../x", "/etc/x", "", "..", "a\0b"):
        with pytest.raises(OutputError, match="not a plain file name"):
            product_path("out", name, None, "i2d")


def test_preflight(tmp_path, monkeypatch):
    folder = preflight(tmp_path / "a" / "b", ["x.fits"], overwrite=False)
    assert folder.is_dir() and not list(folder.iterdir())
    (folder / "x.fits").touch()
    assert preflight(folder, ["x.fits"]) == folder
    for place, match in (
        (folder, r"x\.fits exists"),
        (folder / "x.fits", "is a file, expected a folder"),
        (folder / "x.fits" / "deeper", "cannot make output folder"),
    ):
        with pytest.raises(OutputError, match=match):
            preflight(place, ["y.fits", "x.fits"], overwrite=False)

    def refuse(self, *args, **keywords):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(OutputError, match="cannot write .*Permission denied"):
        preflight(folder, [])
