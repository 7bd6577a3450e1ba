"""The first run after installation: two processes compile what one would take longer for."""

import json
import time

import pytest

from gpucoron.backend import compiling
from tests.helpers.processes import python
from tests.helpers.tiny_sets import TinySet

WATCHED = """
import json, sys
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    {then}
functions = [e.data["dispatcher"].py_func for _, e in recorder.buffer if e.is_start]
own = [f for f in functions if f.__module__.startswith("gpucoron.")]
print(json.dumps([f.__module__.split(".")[-1] + "." + f.__name__ for f in own]))
"""
READ_ONLY = """
    from gpucoron.backend import caches  # root may write everywhere
    writable = caches._writable
    caches._writable = lambda folder: folder.name != "cache" and writable(folder)
"""
RUN = "from gpucoron.cli.main import main; assert main([*sys.argv[1:], '-q']) == 0"


def compiled(cache, then, *words, **environment):
    code = WATCHED.format(then=then)
    done = python("-c", code, *words, NUMBA_CACHE_DIR=str(cache), **environment)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_what_is_compiled_beside_is_what_a_run_needs(tmp_path):
    tiny, cache = TinySet(tmp_path), tmp_path / "cache"
    late = "from gpucoron.ops.cpu.compile_late import compile_late; compile_late()"
    beside = compiled(cache, late)
    fits = {"registration._fit_pairs", "registration._maximise"}
    assert fits | {"drizzle.overlap_rows", "drizzle_planes.accumulate"} < beside
    here = compiled(cache, RUN, *tiny.words())
    assert "registration._contract_blocks" in here
    assert beside & here == set()
    assert compiled(cache, RUN, *tiny.words()) == set()
    (tmp_path / "tmp").mkdir()
    again = compiled(cache, f"{READ_ONLY}    {RUN}", *tiny.words(), TMPDIR=str(tmp_path / "tmp"))
    assert again == set()
    assert len(list((tmp_path / "tmp").glob("gpucoron-*/loops-*/*/*.nbc"))) > 20


@pytest.mark.parametrize("own, threads, started", [(False, 2, 0), (True, 1, 0), (True, 2, 1)])
def test_when_a_process_is_started(own, threads, started, monkeypatch, caplog):
    made = []
    monkeypatch.setattr(compiling, "_second_allowed", [True] if own else [])
    monkeypatch.setattr(compiling.subprocess, "Popen", lambda *a, **k: made.append(a))
    compiling._listener.cache_clear()
    caplog.set_level("INFO", "gpucoron")
    compiling.watch_compiling(threads)
    for _ in range(3):
        compiling._listener().on_start(None)
    assert len(made) == started and caplog.text.count("compiling loops") == 1


def test_a_process_that_cannot_be_started_is_done_without(monkeypatch):
    def refuse(*unused, **options):
        raise PermissionError

    monkeypatch.setattr(compiling.subprocess, "Popen", refuse)
    compiling._start_second_compiler()


def test_the_command_shares_and_the_library_does_not():
    code = (
        "import sys; from gpucoron.backend import compiling\n"
        "from gpucoron.cli import main as cli; cli.main = lambda: 0\n"
        "assert not compiling._second_allowed\n"
        "try: cli.script()\n"
        "except SystemExit: pass\n"
        "assert compiling._second_allowed"
    )
    assert python("-c", code).returncode == 0


def test_nothing_is_imported_from_the_folder_it_works_in(tmp_path, monkeypatch):
    for name in ("numba", "gpucoron", "logging"):
        (tmp_path / f"{name}.py").write_text("open('canary', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compiling, "_CODE", "import numba, gpucoron, logging; open('done', 'w')")
    compiling._start_second_compiler()
    deadline = time.monotonic() + 60
    while not (tmp_path / "done").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (tmp_path / "canary").exists()
