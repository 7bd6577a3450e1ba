import logging

import numpy as np
import pytest

from gpucoron.core.stack import IntegrationStack, PlaneSource
from gpucoron.errors import InputError
from gpucoron.steps import stack_refs
from tests.helpers.scenes import changed


def exposure(name, n, shape=(4, 5), value=1.0):
    data = np.full((n, *shape), value, np.float32)
    sources = tuple(PlaneSource(name, i + 1) for i in range(n))
    dq = np.zeros(data.shape, np.uint32)
    return IntegrationStack(data, data * 0.1, dq, var_flat=data, sources=sources)


def test_order_and_sources():
    out = stack_refs([exposure("a", 2, value=1), exposure("b", 3, value=2)])
    assert out.data[:, 0, 0].tolist() == [1, 1, 2, 2, 2]
    assert out.sources == (("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3))
    assert out.var_flat is None


def test_unusable_integrations_are_named_and_left_out(caplog):
    b = changed(exposure("b", 3), data=(1, np.nan), dq=(2, 1))
    with caplog.at_level(logging.WARNING, "gpucoron"):
        out = stack_refs([exposure("a", 1), b])
    assert out.sources == (("a", 1), ("b", 1))
    assert "b, integration 2" in caplog.text and "b, integration 3" in caplog.text
    assert len(stack_refs([exposure("a", 1), b], keep_unusable=True)) == 4


def test_errors():
    with pytest.raises(InputError, match="no reference exposures"):
        stack_refs([])
    with pytest.raises(InputError, match="differ in shape"):
        stack_refs([exposure("a", 1), exposure("b", 1, (5, 5))])
    with pytest.raises(InputError, match="no reference integration has a usable pixel"):
        stack_refs([exposure("a", 2, value=np.nan)])
