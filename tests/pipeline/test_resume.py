"""Continuing a run: what is taken over, what is made anew, and that nobody can tell afterwards."""

import json
import logging
import os
import sys

import pytest

import gpucoron
from gpucoron.errors import OutputError, UsageError
from gpucoron.io.fits.checksums import is_whole, product_sums
from gpucoron.pipeline.output_lock import FolderLock
from gpucoron.pipeline.subtraction import Subtraction
from tests.helpers.cuda_on_host import cupy_on_host
from tests.helpers.tiny_sets import TinySet, one_thread  # noqa: F401
from tests.pipeline.test_kill import contents, look

pytestmark = pytest.mark.slow

OPTIONS = {"device": "cpu", "klip_truncate": 3}


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


def record(tiny):
    (path,) = tiny.out.glob("*_run.json")
    return path, json.loads(path.read_text())


def only_line(err):
    lines = [line for line in err.splitlines() if "error:" in line]
    assert len(lines) == 1 and "Traceback" not in err
    return lines[0]


def times(tiny):
    return {path.name: path.stat().st_mtime_ns for path in tiny.out.glob("*.fits")}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"klip_truncate": (1, 3)},
        {"align": "first"},
        {"preset": "jwst"},
        {"align_refs": {"skip": True}},
        {"outlier_detection": {"skip": True}},
        {"save": ("psfsub", "i2d", "median")},
        {"threads": 1},
    ],
)
def test_what_is_missing_is_made_anew(options, tiny, subtracted):
    first = run(tiny, **options)
    right, n_science = contents(tiny.out), len(subtracted)
    kinds = {path.stem.rpartition("_")[2] for path in first.files}
    for kind in sorted(kinds & {"psfsub", "i2d"} if options else kinds):
        subtracted.clear()
        before = times(tiny)
        victim = next(tiny.out.glob(f"*_{kind}.fits"))
        victim.unlink()
        again = run(tiny, **options, resume=True)
        assert contents(tiny.out) == right and set(again.files) == set(first.files)
        assert {n for n, t in times(tiny).items() if t != before[n]} == {victim.name}
        assert len(subtracted) == (kind in ("psfalign", "psfsub"))
    assert n_science == 2


def test_results_in_memory_are_those_of_the_whole_run(tiny):
    first = run(tiny, threads=1).product
    next(tiny.out.glob("*_i2d.fits")).unlink()
    again = run(tiny, threads=1, resume=True).product
    assert again.i2d.data.tobytes() == first.i2d.data.tobytes()
    for root, stack in first.psfsub.items():
        for name in ("data", "err", "dq", "var_rnoise"):
            ours = getattr(again.psfsub[root], name)
            assert ours.tobytes() == getattr(stack, name).tobytes() and ours.flags.c_contiguous
        assert again.crfints[root].dq.tobytes() == first.crfints[root].dq.tobytes()
        assert again.fits[root].dtype == first.fits[root].dtype
        assert again.fits[root].tobytes() == first.fits[root].tobytes()
        assert again.record.exposures[root].after[3].tobytes() == (
            first.record.exposures[root].after[3].tobytes()
        )


@pytest.mark.parametrize("device", ["host-forward", "cuda"], indirect=True)
def test_on_a_gpu(device, tiny, subtracted):
    options = {"device": 0, "keep": ()}
    run(tiny, **options)
    right = contents(tiny.out)
    for kind in ("i2d", "psfsub"):
        next(tiny.out.glob(f"*_{kind}.fits")).unlink()
    subtracted.clear()
    run(tiny, **options, resume=True)
    assert contents(tiny.out) == right and len(subtracted) == 1
    assert len(record(tiny)[1]["device_memory_bytes"]) == 1  # none is left in use


@pytest.mark.parametrize("device", ["host-forward"], indirect=True)
def test_a_gpu_that_is_lost(device, tiny, monkeypatch, capsys, tmp_path):
    """After each tenth of the kernels: one line, nothing half-written, and the run is continued."""
    launches, left, launch = [], [10**9], cupy_on_host._RawKernel.__call__

    def call(kernel, *arguments, **keywords):
        launches.append(kernel)
        left[0] -= 1
        if left[0] < 0:
            raise cupy_on_host.CUDARuntimeError("cudaErrorDeviceUnavailable: device is lost")
        return launch(kernel, *arguments, **keywords)

    monkeypatch.setattr(cupy_on_host._RawKernel, "__call__", call)
    words = ("--device", "0", "-q", "--set", "klip.truncate=3")
    assert tiny.command(*words) == 0
    right, n, seen = contents(tiny.out), len(launches), set()
    for tenth in range(10):
        tiny.out = tmp_path / f"out{tenth}"
        left[0] = n * tenth // 10
        assert tiny.command(*words) == 4
        assert "cudaErrorDeviceUnavailable: device is lost" in only_line(capsys.readouterr().err)
        whole, rest = look(tiny.out)
        assert rest == []
        seen.add(len(whole))
        left[0] = 10**9
        assert tiny.command(*words, "--resume") == 0
        assert contents(tiny.out) == right
    assert len(seen) > 2


def test_a_report_of_a_continued_run(tiny):
    run(tiny)
    next(tiny.out.glob("*_i2d.fits")).unlink()
    assert "<html" in run(tiny, resume=True, keep=()).report(tiny.out).read_text()


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
    run(tiny)
    right = contents(tiny.out)
    for kind in ("psfsub", "i2d"):
        harm(next(tiny.out.glob(f"*_{kind}.fits")))
    run(tiny, resume=True)
    assert contents(tiny.out) == right
    told = [r.getMessage() for r in caplog.records if "missing or modified" in r.getMessage()]
    assert len(told) == 2 and record(tiny)[1]["resumed"]["taken_over"] == 9


def test_every_byte_counts(tiny):
    run(tiny, save=("i2d",))
    (path,) = tiny.out.glob("*_i2d.fits")
    sums, size = product_sums(path), path.stat().st_size
    assert is_whole(path, sums)
    for where in range(0, size, size // 97):
        flip(path, where)
        assert not is_whole(path, sums)
        flip(path, where)
    assert is_whole(path, sums) and not is_whole(path.with_name("none.fits"), sums)


# ---- another run than before


def edit_record(tiny, change):
    path, content = record(tiny)
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change, options, reason",
    [
        (None, {"klip_truncate": 4}, "klip.truncate was 3 and is 4"),
        (None, {"preset": "jwst"}, "align_refs.align was each and is first"),
        (lambda t: t.edit(t.psf[1], SCI=lambda a: a * 1.01), {}, "{psf} is not as it was"),
        (lambda t: t.members(lambda name: name != t.psf[1].name), {}, "{asn} is not as it was"),
        (None, {"psfmask": "{mask}"}, "{mask} is now an input"),
        (
            lambda t: edit_record(t, lambda c: c.update(gpucoron="0.0.1")),
            {},
            "gpucoron was 0.0.1 and",
        ),
        (
            lambda t: edit_record(t, lambda c: c["versions"].update(numpy="1.0")),
            {},
            "numpy was 1.0 and is",
        ),
        (
            lambda t: edit_record(t, lambda c: c["device"].update(name="6502")),
            {},
            "its name was 6502 and is",
        ),
        (
            lambda t: edit_record(t, lambda c: c["inputs"][2].update(crc32=None)),
            {},
            "{psf} is not as it was",
        ),
    ],
)
def test_another_run_starts_over_and_says_why(change, options, reason, tiny, caplog, subtracted):
    run(tiny, keep=())
    if change:
        change(tiny)
    subtracted.clear()
    options = {k: str(tiny.mask) if v == "{mask}" else v for k, v in options.items()}
    run(tiny, keep=(), resume=True, **options)
    names = {"psf": tiny.psf[1].name, "asn": tiny.asn.name, "mask": tiny.mask.name}
    assert f"starting over: {reason.format(**names)}" in caplog.text
    assert len(subtracted) == 2 and record(tiny)[1]["resumed"]["taken_over"] == 0


def test_a_psfmask_that_crds_exchanged(tiny, caplog, subtracted):
    run(tiny)
    edit_record(tiny, lambda c: next(iter(c["psfmasks"].values())).update(name="old", crc32="0"))
    subtracted.clear()
    run(tiny, resume=True)
    assert "starting over: the psfmask was old and is N/A" in caplog.text and len(subtracted) == 2


def test_other_threads_memory_and_folders_are_no_other_run(tiny, subtracted):
    run(tiny)
    subtracted.clear()
    moved = tiny.folder.parent / "elsewhere"
    tiny.folder.rename(moved)
    tiny.asn = moved / tiny.asn.name
    tiny.out = tiny.out.rename(tiny.out.with_name("renamed"))
    run(tiny, resume=True, threads=1, memory="1GiB", save=("psfsub", "psfalign"))
    assert subtracted == [] and record(tiny)[1]["resumed"]["taken_over"] == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "[" * 100000])
def test_a_record_that_is_none_is_passed_over(text, tiny, caplog):
    tiny.out.mkdir()
    run(tiny)
    path, _ = record(tiny)
    path.write_text(text)
    run(tiny, resume=True)
    assert f"{path.name}: not a valid run record, ignored" in caplog.text
    assert record(tiny)[1]["status"] == "complete"


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": [1, {}]},
        {"files": [1, {"name": "x"}, {"state": "complete"}]},
        {"psfmasks": {}},
        {"device": {}},
        {"versions": {}},
        {"warnings": [1, None]},
        {"process": "x"},
        {"process": None},
    ],
)
def test_records_with_odd_contents(change, tiny):
    run(tiny)
    right = contents(tiny.out)
    edit_record(tiny, lambda c: c.update(change))
    run(tiny, resume=True)
    assert contents(tiny.out) == right


def test_what_a_killed_run_left_is_removed_and_nothing_else(tiny):
    result = run(tiny)
    path, content = record(tiny)
    path.write_text(json.dumps({**content, "process": 99}))
    name = result.product.name
    left = {f".{name}_{kind}.99-7-0a1b.part" for kind in ("report.html", "i2d.fits", "run.json")}
    others = {f".{name}_i2d.fits.98-7-0a1b.part", ".mine_i2d.fits.99-7-0a1b.part", ".part"}
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
    with pytest.raises(
        OutputError,
        match=rf"another run \(process {os.getpid()} on \S+\) writes a "
        rf"into {tmp_path}; wait for its end or choose another",
    ):
        FolderLock(tmp_path, "a")
    FolderLock(tmp_path, "b").release()
    lock.release()
    FolderLock(tmp_path, "a").release()
    assert not list(tmp_path.iterdir())
    pid = os.fork()
    if pid == 0:
        FolderLock(tmp_path, "a")
        os._exit(0)
    os.waitpid(pid, 0)
    assert [p.name for p in tmp_path.iterdir()] == [".a.lock"]
    FolderLock(tmp_path, "a").release()


def test_a_lock_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write \S+/file/.a.lock: "):
        FolderLock(tmp_path / "file", "a")


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def flock(fd, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    FolderLock(tmp_path, "a").release()
    assert "has no locks; let no other run write there" in caplog.text


def forked(tiny, err, *words):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sys.stderr = open(err, "w", buffering=1)
            code = tiny.command("-q", "--set", "klip.truncate=3", *words)
        finally:
            os._exit(code)
    return pid


def test_many_runs_into_one_folder(tiny, tmp_path):
    """All but those that hold the folder end at once; whoever gets it does all of the work."""
    assert tiny.command("-q", "--set", "klip.truncate=3") == 0
    right = contents(tiny.out)
    tiny.out = tmp_path / "contested"
    pids = [forked(tiny, tmp_path / f"err{k}", *["--resume"] * (k % 2)) for k in range(6)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert 0 in codes and set(codes) <= {0, 5}
    for k, code in enumerate(codes):
        if code:
            line = only_line((tmp_path / f"err{k}").read_text())
            assert "another run (" in line and "wait for its end" in line
    assert 5 in codes
    assert contents(tiny.out) == right and len(tiny.files()) == 11


def test_runs_of_different_products_share_a_folder(tiny, tmp_path):
    pids = []
    for k in range(3):
        tiny.edit_asn(lambda c, k=k: c["products"][0].update(name=f"product{k}"))
        tiny.edit_asn(lambda c, k=k: c.update(asn_id=f"a300{k}"))
        copy = tiny.asn.with_name(f"asn{k}.json")
        copy.write_text(tiny.asn.read_text())
        one = TinySet.__new__(TinySet)
        one.asn, one.out = copy, tiny.out
        pids.append(forked(one, tmp_path / f"err{k}"))
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert len(tiny.files()) == 33 and len(list(tiny.out.glob("*_run.json"))) == 3
    look(tiny.out)
