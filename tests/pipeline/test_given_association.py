"""Associations that are a dict or a list instead of a file."""

import dataclasses
import json

import pytest

import gpucoron
from gpucoron.errors import AssociationError, ExposureError, UsageError
from gpucoron.io import read_exposure


def test_an_association_that_is_no_file(tiny, tmp_path, monkeypatch):
    """A dict, a list of paths, pairs, and exposures with changed images."""
    monkeypatch.chdir(tmp_path)
    options = {"psfmask": tiny.mask, "device": "cpu", "klip_truncate": 3}
    expected = gpucoron.run(tiny.asn, **options).product
    table = json.loads(tiny.asn.read_text())
    members = table["products"][0]["members"]
    paths = [(tiny.asn.parent / m["expname"], m["exptype"]) for m in members]
    for member, (path, _) in zip(members, paths, strict=True):
        member["expname"] = path
    exposures = [read_exposure(*pair) for pair in paths]
    for given in (table, paths, [*paths[:2], *exposures[2:]]):
        found = gpucoron.run(given, **options)
        assert found.product.i2d == expected.i2d and not found.warnings
    changed = exposures[0].stack.replace(data=2 * exposures[0].stack.data)
    exposures[0] = dataclasses.replace(exposures[0], stack=changed)
    found = gpucoron.run(exposures, **options, output_dir=tmp_path / "out", save=["i2d"])
    assert found.product.i2d != expected.i2d and len(found.files) == 1
    for given, error, message in (
        (5, AssociationError, "the association is a int, expected the path of an association"),
        ([5], AssociationError, "'5' is no exposure"),
        ([paths[0][0].parent / "absent.fits"], ExposureError, "absent.fits"),
        ({"products": []}, AssociationError, "'products' is an empty list"),
        ({"products": {1, 2}}, AssociationError, "no plain dict"),
        (
            [dataclasses.replace(e, stack=e.stack.planes([0])) for e in exposures],
            ExposureError,
            "SCI",
        ),
        (exposures[:1], ExposureError, "no psf member to use"),
    ):
        with pytest.raises(error, match=message):
            gpucoron.run(given, **options)
    with pytest.raises(UsageError, match="as a file"):
        gpucoron.run(paths, **options, output_dir=tmp_path / "out", resume=True)
