"""Runs that several tests look at; they must not change them."""

import pytest

import gpucoron
from gpucoron.simulate import simulate

ROLLS = {"n_science": 2, "n_reference_integrations": 2}


@pytest.fixture(scope="session")
def planets(tmp_path_factory):
    """A run whose star is where target acquisition puts it, with planets that are known."""
    sizes = {"shape": (160, 160), "n_integrations": 3, "n_references": 5, **ROLLS}
    folder = tmp_path_factory.mktemp("planets")
    made = simulate(folder, seed=4, acquisition_px=0.0, disk=False, **sizes)
    options = {"klip_truncate": (2, 6), "keep": ("i2d",), "device": "cpu"}
    return made, gpucoron.run(made.asn, psfmask=made.psfmask, **options)
