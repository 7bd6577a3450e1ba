"""Fixtures for the whole suite."""

from pathlib import Path

import pytest

import gpucoron.threads  # noqa: F401  before anything loads OpenMP

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real and synthetic exposures beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no test data at {SHARED.name}: the folder ../shared/data is absent")
    return SHARED
