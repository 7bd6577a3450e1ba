"""Continuing a run: what is taken over, what is made anew, and that nobody can tell afterwards."""

import functools
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest

import gpucoron
from gpucoron.errors import OutputError, UsageError
from gpucoron.io.fits.checksums import is_whole
from gpucoron.pipeline.output_lock import FolderLock
from gpucoron.pipeline.subtraction import Subtraction
from tests.helpers import chance
from tests.helpers.cuda_on_host import cupy_on_host
from tests.helpers.tiny_sets import (  # noqa: F401
    NAME,
    TinySet,
    checksums,
    one_thread,
    only_error,
    wait,
)
from tests.pipeline.test_kill import contents, look

pytestmark = pytest.mark.slow

OPTIONS = {"device": "cpu", "klip_truncate": 3}
WORDS = ("-q", "--set", "klip.truncate=3")


@pytest.fixture
def subtracted(monkeypatch):
    """The names of exposures whose PSF is subtracted, not read back."""
    roots, real = [], Subtraction.run

    def run(self, writer):
        roots.append(self.root)
        return real(self, writer)

    monkeypatch.setattr(Subtraction, "run", run)
    return roots


def run(tiny, **options):
    return gpucoron.run(tiny.asn, output_dir=tiny.out, **OPTIONS | options)


@functools.cache
def _finished():
    folder = tempfile.TemporaryDirectory(prefix="gpucoron-tests-")  # until the process ends
    tiny = TinySet(Path(folder.name))
    run(tiny)
    return folder, tiny.out


def finished(tiny):
    """Have the products and the record of a run, made once: all sets are equal."""
    shutil.copytree(_finished()[1], tiny.out)


def lose(tiny, kind):
    """Remove a product of a kind; return its name."""
    path = next(tiny.out.glob(f"*_{kind}.fits"))
    path.unlink()
    return path.name


def times(tiny):
    return {path.name: path.stat().st_mtime_ns for path in tiny.out.glob("*.fits")}


SKIPS = [{"align_refs_skip": True}, {"outlier_detection_skip": True}]
OTHERS = [{"klip_truncate": (1, 3)}, {"align": "first"}, {"preset": "jwst"}, {"threads": 1}]


@pytest.mark.parametrize("options", [{}, *SKIPS, *OTHERS, {"save": ("psfsub", "i2d", "median")}])
def test_what_is_missing_is_made_anew(options, tiny, subtracted):
    first = run(tiny, **options)
    right, n_science = contents(tiny.out), len(subtracted)
    kinds = {path.stem.rpartition("_")[2] for path in first.files}
    for kind in sorted(kinds & {"psfsub", "i2d"} if options else kinds):
        subtracted.clear()
        before = times(tiny)
        victim = lose(tiny, kind)
        again = run(tiny, **options, resume=True)
        assert contents(tiny.out) == right and set(again.files) == set(first.files)
        assert {n for n, t in times(tiny).items() if t != before[n]} == {victim}
        assert len(subtracted) == (kind in ("psfalign", "psfsub"))
    assert n_science == 2


def test_results_in_memory_are_those_of_the_whole_run(tiny):
    first = run(tiny, threads=1).product
    lose(tiny, "i2d")
    result = run(tiny, threads=1, resume=True)
    assert "<html" in result.report(tiny.out).read_text()
    again = result.product
    assert again.i2d.data.tobytes() == first.i2d.data.tobytes()
    for (root, _), stack in first.psfsub.items():
        for name in ("data", "err", "dq", "var_rnoise"):
            ours = getattr(again.psfsub[root], name)
            assert ours.tobytes() == getattr(stack, name).tobytes() and ours.flags.c_contiguous
        assert again.crfints[root].dq.tobytes() == first.crfints[root].dq.tobytes()
        assert again.fits[root].dtype == first.fits[root].dtype
        assert again.fits[root].tobytes() == first.fits[root].tobytes()
        after, right = (p.record.exposures[root].after[3] for p in (again, first))
        assert after.tobytes() == right.tobytes()


@pytest.mark.parametrize("device", ["host-forward", "cuda"], indirect=True)
def test_on_a_gpu(device, tiny, subtracted):
    options = {"device": 0, "keep": ()}
    run(tiny, **options)
    right = contents(tiny.out)
    for kind in ("i2d", "psfsub"):
        lose(tiny, kind)
    subtracted.clear()
    run(tiny, **options, resume=True)
    assert contents(tiny.out) == right and len(subtracted) == 1
    assert len(tiny.record()["device_memory_bytes"]) == 1  # none is left in use


@pytest.mark.parametrize("device", ["host-forward"], indirect=True)
def test_a_gpu_that_is_lost(device, tiny, monkeypatch, capsys, tmp_path):
    """After some tenths of the kernels: one line, nothing half-written, the run is continued."""
    launches, left, launch = [], [10**9], cupy_on_host._RawKernel.__call__

    def call(kernel, *arguments, **keywords):
        launches.append(kernel)
        left[0] -= 1
        if left[0] < 0:
            raise cupy_on_host.CUDARuntimeError("cudaErrorDeviceUnavailable: device is lost")
        return launch(kernel, *arguments, **keywords)

    monkeypatch.setattr(cupy_on_host._RawKernel, "__call__", call)
    words = ("--device", "0", *WORDS)
    assert tiny.command(*words) == 0
    right, n, seen = contents(tiny.out), len(launches), set()
    for tenth in range(10) if chance.EVERYTHING else (0, 3, 6, 9):
        tiny.out = tmp_path / f"out{tenth}"
        left[0] = n * tenth // 10
        assert tiny.command(*words) == 4
        assert "cudaErrorDeviceUnavailable: device is lost" in only_error(capsys.readouterr().err)
        whole, rest = look(tiny.out)
        assert rest == []
        seen.add(len(whole))
        left[0] = 10**9
        assert tiny.command(*words, "--resume") == 0
        assert contents(tiny.out) == right
    assert len(seen) > 2


@pytest.mark.parametrize(
    "options, redone",
    [({"keep": ("psfalign",)}, 2), ({"save": ("psfalign", "i2d")}, 2), ({"keep": ()}, 0)],
)
def test_subtraction_is_repeated_where_its_outcome_is_not_on_file(
    options, redone, tiny, subtracted
):
    run(tiny, **options)
    subtracted.clear()
    result = run(tiny, **options, resume=True)
    assert len(subtracted) == redone
    assert len(result.product.psfalign) == (2 if "psfalign" in options.get("keep", ()) else 0)


def flip(path, where):
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        lambda p: flip(p, p.stat().st_size // 2),
        lambda p: flip(p, 3000),
        lambda p: flip(p, -5000),
        lambda p: os.truncate(p, p.stat().st_size - 2880),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(p.read_bytes() + bytes(2880)),
        lambda p: p.write_bytes(next(p.parent.glob("*_psfstack.fits")).read_bytes()),
    ],
)
def test_what_was_damaged_is_made_anew(harm, tiny, caplog):
    finished(tiny)
    right = contents(tiny.out)
    for kind in ("psfsub", "i2d"):
        harm(next(tiny.out.glob(f"*_{kind}.fits")))
    run(tiny, resume=True)
    assert contents(tiny.out) == right
    told = [r.getMessage() for r in caplog.records if "missing or modified" in r.getMessage()]
    assert len(told) == 2 and tiny.record()["resumed"]["taken_over"] == 9


def test_every_byte_counts(tiny):
    finished(tiny)
    (path,) = tiny.out.glob("*_i2d.fits")
    sums, size = checksums(path), path.stat().st_size
    assert is_whole(path, sums)
    for where in range(0, size, size // 97):
        flip(path, where)
        assert not is_whole(path, sums)
        flip(path, where)
    assert is_whole(path, sums) and not is_whole(path.with_name("none.fits"), sums)


# ---- another run than before
def recorded(*keys, **values):
    """Return what changes the record; `keys` lead to what is updated."""

    def change(tiny):
        path = next(tiny.out.glob("*_run.json"))
        content = place = tiny.record()
        for key in keys:
            place = place[key]
        place.update(values)
        path.write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    "change, options, reason",
    [
        (None, {"klip_truncate": 4}, "klip.truncate was 3 and is 4"),
        (None, {"preset": "jwst"}, "align_refs.align was joint and is first"),
        (lambda t: t.edit(t.psf[1], SCI=lambda a: a * 1.01), {}, "{psf} is not as it was"),
        (lambda t: t.members(lambda name: name != t.psf[1].name), {}, "{asn} is not as it was"),
        (None, {"psfmask": "{mask}"}, "{mask} is now an input"),
        (recorded(gpucoron="0.0.1"), {}, "gpucoron was 0.0.1 and"),
        (recorded("versions", numpy="1.0"), {}, "numpy was 1.0 and is"),
        (recorded("device", name="6502"), {}, "its name was 6502 and is"),
        (recorded("inputs", 2, crc32=None), {}, "{psf} is not as it was"),
        (recorded("psfmasks", NAME, name="old", crc32="0"), {}, "the psfmask was old and is N/A"),
    ],
)
def test_another_run_starts_over_and_says_why(change, options, reason, tiny, caplog, subtracted):
    finished(tiny)
    if change:
        change(tiny)
    subtracted.clear()
    options = {k: str(tiny.mask) if v == "{mask}" else v for k, v in options.items()}
    run(tiny, keep=(), resume=True, **options)
    names = {"psf": tiny.psf[1].name, "asn": tiny.asn.name, "mask": tiny.mask.name}
    assert f"starting over: {reason.format(**names)}" in caplog.text
    taken_over = 11 if "psfmask was" in reason else 0  # it is compared after that count
    assert len(subtracted) == 2 and tiny.record()["resumed"]["taken_over"] == taken_over


def test_other_threads_memory_and_folders_are_no_other_run(tiny, subtracted):
    finished(tiny)
    subtracted.clear()
    moved = tiny.folder.parent / "elsewhere"
    tiny.folder.rename(moved)
    tiny.asn = moved / tiny.asn.name
    tiny.out = tiny.out.rename(tiny.out.with_name("renamed"))
    run(tiny, resume=True, threads=1, memory="1GiB", save=("psfsub", "psfalign"))
    assert subtracted == [] and tiny.record()["resumed"]["taken_over"] == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "[" * 100000])
def test_a_record_that_is_none_is_passed_over(text, tiny, caplog):
    finished(tiny)
    (path,) = tiny.out.glob("*_run.json")
    path.write_text(text)
    run(tiny, resume=True)
    assert f"{path.name}: not a valid run record, ignored" in caplog.text
    assert tiny.record()["status"] == "complete"


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": [1, {}]},
        {"files": [1, {"name": "x"}, {"state": "complete"}]},
        {"warnings": [1, None]},
        *({name: {}} for name in ("psfmasks", "device", "versions")),
        *({"process": value} for value in ("x", None)),
    ],
)
def test_records_with_odd_contents(change, tiny):
    finished(tiny)
    right = contents(tiny.out)
    recorded(**change)(tiny)
    run(tiny, resume=True)
    assert contents(tiny.out) == right


def test_what_a_killed_run_left_is_removed_and_nothing_else(tiny):
    finished(tiny)
    recorded(process=99)(tiny)
    left = {f".{NAME}_{kind}.99-7-0a1b.part" for kind in ("report.html", "i2d.fits", "run.json")}
    others = {f".{NAME}_i2d.fits.98-7-0a1b.part", ".mine_i2d.fits.99-7-0a1b.part", ".part"}
    for each in left | others:
        (tiny.out / each).write_text("")
    run(tiny)
    assert {p.name for p in tiny.out.glob(".*part")} == others


def test_nothing_to_continue_from(tiny, caplog):
    with caplog.at_level(logging.INFO):
        run(tiny, resume=True)
    assert "nothing to continue from" in caplog.text and len(tiny.files()) == 11


def test_calls_that_contradict_themselves(tiny, capsys):
    with pytest.raises(UsageError, match="resume needs an output folder"):
        gpucoron.run(tiny.asn, resume=True)
    with pytest.raises(UsageError, match="resume needs overwriting"):
        run(tiny, resume=True, overwrite=False)
    assert tiny.command("--resume", "--no-overwrite") == 2
    assert "resume needs overwriting" in capsys.readouterr().err and not tiny.out.exists()


# ---- two runs at a time
def test_a_lock_ends_with_its_holder(tmp_path):
    lock = FolderLock(tmp_path, "a")
    message = rf"another run \(process {os.getpid()} on \S+\) writes a into {tmp_path}; "
    with pytest.raises(OutputError, match=f"{message}wait for its end or choose another"):
        FolderLock(tmp_path, "a")
    FolderLock(tmp_path, "b").release()
    lock.release()
    FolderLock(tmp_path, "a").release()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write \S+/file/.a.lock: "):
        FolderLock(tmp_path / "file", "a")
    (tmp_path / "file").unlink()
    pid = os.fork()
    if pid == 0:
        FolderLock(tmp_path, "a")
        os._exit(0)
    os.waitpid(pid, 0)
    assert [p.name for p in tmp_path.iterdir()] == [".a.lock"]
    FolderLock(tmp_path, "a").release()


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def flock(fd, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    FolderLock(tmp_path, "a").release()
    assert "has no locks; let no other run write there" in caplog.text


def test_many_runs_into_one_folder(tiny, tmp_path):
    """All but those that hold the folder end at once; whoever gets it does all of the work."""
    assert tiny.command(*WORDS) == 0
    right = contents(tiny.out)
    tiny.out = tmp_path / "contested"
    errs = [tmp_path / f"err{k}" for k in range(6)]
    pids = [tiny.fork(*WORDS, *["--resume"] * (k % 2), err=err) for k, err in enumerate(errs)]
    codes = [wait(pid) for pid in pids]
    assert 0 in codes and set(codes) <= {0, 5}
    for err, code in zip(errs, codes, strict=True):
        if code:
            line = only_error(err.read_text())
            assert "another run (" in line and "wait for its end" in line
    assert 5 in codes
    assert contents(tiny.out) == right and len(tiny.files()) == 11


def test_runs_of_different_products_share_a_folder(tiny):
    pids = []
    for k in range(3):
        tiny.asn = Path(shutil.copy(tiny.asn, tiny.folder / f"asn{k}.json"))
        tiny.edit_asn(lambda c, k=k: c["products"][0].update(name=f"product{k}"))
        tiny.edit_asn(lambda c, k=k: c.update(asn_id=f"a300{k}"))
        pids.append(tiny.fork(*WORDS))
    assert [wait(pid) for pid in pids] == [0, 0, 0]
    assert len(tiny.files()) == 33 and len(list(tiny.out.glob("*_run.json"))) == 3
    look(tiny.out)
