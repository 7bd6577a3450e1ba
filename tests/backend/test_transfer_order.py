"""Every wait between streams and the host is needed: without any one of them a race is found.

The waits are looked for in the sources: a new one fails here unless an exercise misses it when it
is taken out, and so does one in a module that has no exercise.
"""

import ast
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import gpucoron
from tests.helpers.cuda_on_host.order import Race

PACKAGE = Path(gpucoron.__file__).parent
WAITS = {"wait_event", "synchronize", "deviceSynchronize", "streamSynchronize"}
WAITS |= {"eventSynchronize", "streamWaitEvent"}
RECORDS = {"record", "eventRecord"}
EMULATED = pytest.mark.parametrize("device", ["host-forward"], indirect=True)


def waits_of(path):
    """List the calls of a source that order work, as (line, column, name)."""
    return sorted(
        (node.lineno, node.col_offset, node.func.attr)
        for node in ast.walk(ast.parse(path.read_text()))
        if _orders(node)
    )


def _orders(node):
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in WAITS | RECORDS
    )


class Without(ast.NodeTransformer):
    """Takes out one wait; for a recorded event there is one that never was recorded."""

    def __init__(self, call):
        self._call = call

    def visit_Call(self, node):
        self.generic_visit(node)
        if not _orders(node) or (node.lineno, node.col_offset, node.func.attr) != self._call:
            return node
        left = "__import__('cupy').cuda.Event()" if node.func.attr in RECORDS else "None"
        return ast.copy_location(ast.parse(left, mode="eval").body, node)


def loaded(path, call=None):
    """Return a module made afresh from a source, without one of its calls."""
    tree = ast.parse(path.read_text())
    if call:
        tree = ast.fix_missing_locations(Without(call).visit(tree))
    dotted = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    module = types.ModuleType(dotted)
    module.__file__ = str(path)
    exec(compile(tree, str(path), "exec"), module.__dict__)
    return module


# ---------------------------------------------------------------- exercises
def upload_into_memory_that_is_still_read(place, cp):
    gpu = place.CudaBackend(0)
    with gpu.activate():
        old = cp.ones(1000, "f4")
        total = old.sum()
        del old
    gpu.upload(np.zeros(1000, "f4"))
    assert float(total) == 1000


def use_what_was_uploaded_by_a_thread(place, cp):
    gpu = place.CudaBackend(0)
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(gpu.upload, (np.ones(1000, "f4"), np.arange(5))).result()
    with gpu.activate():
        assert float(there[0].sum() + there[1].sum()) == 1010


def bring_down_what_is_being_computed(place, cp):
    gpu = place.CudaBackend(0)
    for pinned in (False, True):
        with gpu.activate():
            result = cp.ones(1000, "f4") * 2
        later = gpu.download_later(result, pinned)
        with gpu.activate():  # work goes on, with memory of what is gone
            del result
            cp.zeros(1000, "f4").sum()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(later).result().tolist() == [2.0] * 1000


def read_elsewhere_what_is_finished(place, cp):
    gpu = place.CudaBackend(0)
    with gpu.activate():
        result = cp.ones(1000, "f4") * 2
    gpu.finish()
    with cp.cuda.Stream(non_blocking=True):
        assert float(result[0]) == 2


def share_a_table_of_all_streams(kriging, cp):
    with cp.cuda.Stream(non_blocking=True):
        kriging.finest_correlation()
    with cp.cuda.Stream(non_blocking=True):
        assert np.isfinite(float(kriging.finest_correlation().sum()))


EXERCISES = {
    "backend/transfer.py": [
        upload_into_memory_that_is_still_read,
        use_what_was_uploaded_by_a_thread,
        bring_down_what_is_being_computed,
        read_elsewhere_what_is_finished,
    ],
    "ops/cuda/kriging.py": [share_a_table_of_all_streams],
}
CALLS = [
    (str(path.relative_to(PACKAGE)), call)
    for path in sorted(PACKAGE.rglob("*.py"))
    for call in waits_of(path)
]


def does(exercise, module, device):
    """Tell whether the emulation finds a race."""
    device.emulation.reset()
    try:
        exercise(module, device.cupy)
        device.emulation.checker.raise_left()
    except Race as race:
        return str(race)
    finally:
        device.emulation.checker.races.clear()
    return ""


def test_there_is_an_exercise_for_each_module_that_waits():
    assert {file for file, _ in CALLS} == set(EXERCISES)
    names = {name for _, (*_, name) in CALLS}
    assert len(CALLS) >= 7 and names == {"wait_event", "synchronize", "record"}


@EMULATED
@pytest.mark.parametrize("file", EXERCISES)
def test_with_all_waits_there_is_no_race(device, file):
    for exercise in EXERCISES[file]:
        assert does(exercise, loaded(PACKAGE / file), device) == ""


@EMULATED
@pytest.mark.parametrize("file, call", CALLS, ids=str)
def test_without_a_wait_there_is_a_race(device, file, call):
    module = loaded(PACKAGE / file, call)
    assert any(does(exercise, module, device) for exercise in EXERCISES[file])
