"""Fixtures for hostile input."""

import pytest

from tests.fuzz.bounds import one_line


@pytest.fixture
def shown(caplog):
    """Check that all warnings are lines, and not too many."""
    caplog.set_level("WARNING", "gpucoron")
    yield caplog
    for record in caplog.records:
        one_line(record.getMessage())
