"""A disk that fills up ends a run cleanly, and the run is continued."""

import contextlib
import resource
import subprocess
from pathlib import Path

import pytest

from gpucoron.pipeline import run_record
from tests.helpers import processes
from tests.helpers.tiny_sets import one_thread, only_error, wait  # noqa: F401
from tests.pipeline.test_kill import contents, look, uninterrupted
from tests.pipeline.test_resume import WORDS, run, times

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    folder.mkdir()
    made = processes.run(*f"mount -t tmpfs -o size={size} none".split(), folder)
    if made.returncode:
        pytest.skip(f"cannot mount a small file system: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kib", [4, 100, 500, 1000, 1300, 1600, 1800])
def test_a_file_system_that_fills_up(kib, tiny, capsys, tmp_path):
    right = uninterrupted(*WORDS)
    tiny.out = tmp_path / "small"
    with small_disk(tiny.out, f"{kib}k"):
        assert tiny.command(*WORDS) == 5
        line = only_error(capsys.readouterr().err)
        assert "No space left on device" in line or "GiB free" in line
        whole, rest = look(tiny.out)
        assert rest == [] and len(whole) < 11 and not list(tiny.out.glob(".*"))
        if whole:
            assert f"{len(whole)} of 11 products are complete in {tiny.out}, --resume" in line
        subprocess.run(["mount", "-o", "remount,size=20m", str(tiny.out)], check=True)
        before = times(tiny)
        assert tiny.command(*WORDS, "--resume") == 0
        assert contents(tiny.out) == right
        kept = [name for name, t in before.items() if times(tiny)[name] == t]
        assert len(kept) >= len(whole) - 1  # the last may have lacked the room for its entry


@pytest.mark.parametrize("kib", [8, 150, 250])
def test_a_limit_on_the_size_of_files(kib, tiny, tmp_path):
    limit = (kib * 1024,) * 2
    pid = tiny.fork(
        *WORDS,
        err=tmp_path / "err",
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert wait(pid) == 5
    assert "File too large" in only_error((tmp_path / "err").read_text())
    assert look(tiny.out)[1] == [] and not list(tiny.out.glob(".*"))


def test_a_record_that_no_longer_fits_costs_a_warning(tiny, monkeypatch):
    real, calls = run_record.RunRecord._save, []

    def save(self, first=False):
        with monkeypatch.context() as patch:
            if not first:
                calls.append(self.path)
                nowhere = tiny.out / "no" / "where"
                patch.setattr("gpucoron.io.files._temporary_path", lambda path: nowhere)
            real(self, first)

    monkeypatch.setattr(run_record.RunRecord, "_save", save)
    result = run(tiny, threads=1)
    assert len(calls) == 12 and len(result.files) == 11
    expected = [f"cannot write {calls[0]}: No such file or directory"]
    assert [w for w in result.warnings if "_run.json" in w] == expected
