"""Runs on a Dask cluster: the products of a local run, whatever becomes of the workers."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest

import gpucoron
from gpucoron.cli import many as cli_many
from gpucoron.cluster import client as cluster
from gpucoron.cluster.requests import AssociationOutcome, RunRequest, make_request
from gpucoron.cluster.tasks import run_request
from gpucoron.core.products import PRODUCTS
from gpucoron.errors import DeviceError, InputError, MaskError, OutputError, UsageError
from gpucoron.pipeline.output_lock import FolderLock
from gpucoron.pipeline.run_options import RunOptions
from tests.helpers.processes import python
from tests.helpers.tiny_sets import NAME, TinySet, complete, one_thread  # noqa: F401
from tests.pipeline.test_kill import contents

pytestmark = pytest.mark.slow
OPTIONS = {"device": "cpu", "klip_truncate": "2,3"}


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    quiet = {"dashboard_address": None, "silence_logs": "CRITICAL"}
    with (
        distributed.LocalCluster(2, threads_per_worker=1, processes=True, **quiet) as workers,
        distributed.Client(workers) as connected,
    ):
        yield connected


def same(folder, other):
    """Assert that two folders hold the same products, all whole; return their names."""
    for path in other.glob("[!.]*.fits"):
        complete(path)
    right = contents(folder)
    assert contents(other) == right
    return list(right)


def both(tiny, client, **options):
    """Run here and on the cluster; return both results and the names of the products."""
    options = {**OPTIONS, "psfmask": tiny.mask, **options}
    here = gpucoron.run(tiny.asn, output_dir=tiny.folder.parent / "here", keep=(), **options)
    there = gpucoron.run(tiny.asn, output_dir=tiny.out, client=client, **options)
    return here, there, same(tiny.folder.parent / "here", tiny.out)


@pytest.mark.parametrize(
    "options, files",
    [
        ({"save": PRODUCTS}, 19),
        ({"align": "first"}, 14),
        ({"preset": "jwst"}, 14),
        ({"klip_skip": True}, 7),
        ({"resample_skip": True, "save": ["psfsub"]}, 4),
    ],
)
def test_an_association_is_a_task(tiny, client, options, files):
    here, there, names = both(tiny, client, **options)
    assert len(names) == len(there.files) == files
    assert {p.name for p in there.files} == {p.name for p in here.files}
    assert there.warnings == here.warnings and there.parameters == here.parameters
    assert list(here.product.fits) == list(there.product.fits)
    for root, table in here.product.fits.items():
        assert table.tobytes() == there.product.fits[root].tobytes()
    assert set(there.timings) == set(here.timings)
    assert not list(tiny.out.glob(".*.part"))


@pytest.mark.parametrize("save", [["psfsub", "i2d"], None])
def test_a_record_that_a_run_here_goes_on_from(tiny, client, save):
    gpucoron.run(tiny.asn, "cpu", tiny.out, psfmask=tiny.mask, client=client, save=save)
    record = tiny.record()
    assert record["status"] == "complete" and record["device"]["label"] == "cpu"
    assert {e["state"] for e in record["files"]} == {"complete"}
    assert all(e["crc32"] for e in record["inputs"])
    words = ["--psfmask", tiny.mask, "--resume", *(["--save", ",".join(save)] if save else [])]
    ran = python("-m", "gpucoron", *tiny.words(*words))
    n = len(record["files"])
    assert ran.returncode == 0, ran.stderr
    assert f"--resume: {n} of {n} products are complete already" in ran.stderr


def test_a_run_on_the_cluster_continues_an_interrupted_one(tiny, client):
    options = {"psfmask": tiny.mask, "client": client}
    first = gpucoron.run(tiny.asn, "cpu", tiny.out, **options)
    lost = next(path for path in first.files if path.name.endswith("_i2d.fits"))
    lost.unlink()
    again = gpucoron.run(tiny.asn, "cpu", tiny.out, resume=True, **options)
    assert tiny.record()["resumed"]["taken_over"] == len(first.files) - 1
    assert lost.exists() and {p.name for p in again.files} == {p.name for p in first.files}


# ---- what goes wrong
def stuck(folder):
    """Have the first worker that has subtracted an exposure stay there, and say who it is."""
    from gpucoron.pipeline import product

    real = product.save_subtracted

    def wrapper(*args):
        try:
            os.rename(os.path.join(folder, "armed"), os.path.join(folder, f"pid-{os.getpid()}"))
        except FileNotFoundError:
            return real(*args)
        return time.sleep(300)

    product.save_subtracted = wrapper


def test_a_killed_worker_changes_nothing(tiny, client):
    folder = tiny.folder.parent
    (folder / "armed").touch()
    client.run(stuck, str(folder))

    def kill():
        deadline = time.monotonic() + 60
        while not (found := list(folder.glob("pid-*"))) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(int(found[0].name.removeprefix("pid-")), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    _, there, names = both(tiny, client)
    killer.join()
    assert len(names) == 14 == len(there.files)


def test_errors_arrive_as_they_are(tiny, client):
    tiny.edit(tiny.mask, SCI=lambda a: a[:-1])
    with pytest.raises(MaskError, match="the psfmask has shape"):
        gpucoron.run(tiny.asn, "cpu", tiny.out, psfmask=tiny.mask, client=client)
    tiny.out.mkdir(exist_ok=True)
    lock = FolderLock(tiny.out, NAME)
    with pytest.raises(OutputError, match="another run .* writes"):
        gpucoron.run(tiny.asn, "cpu", tiny.out, client=client)
    lock.release()
    assert not list(tiny.out.rglob("*.fits"))
    with pytest.raises(UsageError, match="expected an output_dir, and no keep"):
        gpucoron.run(tiny.asn, client=client)
    with pytest.raises(DeviceError, match="device 7 cannot be used"):
        gpucoron.run(tiny.asn, 7, tiny.out, client=client)


def test_what_a_worker_refuses(tiny):
    options = RunOptions(Path(tiny.asn), device="cpu", output_dir=tiny.folder)
    with pytest.raises(UsageError, match="has gpucoron .*, expected 9.9"):
        run_request(replace(make_request(options), version="9.9"))
    with pytest.raises(InputError, match="the worker on .* does not see it"):
        run_request(make_request(replace(options, output_dir=Path("/nowhere"))))


def test_messages_are_small(tiny):
    save = frozenset({"i2d"})
    request = make_request(RunOptions(tiny.asn, device="cpu", output_dir=tiny.out, save=save))
    tiny.out.mkdir()
    done = run_request(request)
    assert len(pickle.dumps(request)) < 4000
    tables = sum(table.nbytes for table in done.result.product.fits.values())
    assert len(pickle.dumps(done)) < 10_000 + tables


def test_no_scheduler(tiny, capfd, monkeypatch):
    monkeypatch.setattr(cluster, "TIMEOUT", 1.0)
    for address in ("tcp://127.0.0.1:9", "nonsense"):
        start = time.monotonic()
        assert tiny.command("--scheduler", address) == 4
        assert time.monotonic() - start < 8
        error = capfd.readouterr().err.strip()
        assert error.startswith(f"gpucoron: error: no Dask scheduler answers at {address} (")
        assert "\n" not in error


def test_the_scheduler_is_lost(tiny, tmp_path):
    file, python = tmp_path / "scheduler.json", (sys.executable, "-m")
    words = "distributed.cli.dask_scheduler --port 0 --no-dashboard --scheduler-file".split()
    scheduler = subprocess.Popen([*python, *words, file], stderr=subprocess.DEVNULL)
    try:
        while not (file.exists() and file.read_text()):
            time.sleep(0.05)
        words = ["gpucoron", *tiny.words("--scheduler", json.loads(file.read_text())["address"])]
        run = subprocess.Popen([*python, *words], stderr=subprocess.PIPE, text=True)
        told = run.stderr.readline()
        assert "1 association on 0 workers" in told and "waiting for workers" in told
        time.sleep(0.5)
    finally:
        scheduler.kill()
        scheduler.wait()
    rest = run.communicate(timeout=30)[1]
    assert run.returncode == 4
    assert rest.startswith("gpucoron: error: the connection to the Dask scheduler is lost")
    assert rest.count("\n") == 1
    assert not list(tiny.out.rglob("*.fits"))


# ---- several associations from the command line
def several(tmp_path, n=2):
    """Copies of the tiny set whose products have names of their own."""
    sets = []
    for k in range(n):
        tiny = TinySet(tmp_path / f"s{k}")
        tiny.out = tmp_path / "out"

        def change(content, k=k):
            content["asn_id"] = f"c100{k}"
            content["products"][0]["name"] += f"-{k}"

        tiny.edit_asn(change)
        tiny.asn = tiny.asn.rename(tiny.asn.with_name(f"set{k}.json"))
        sets.append(tiny)
    return sets


@pytest.mark.parametrize("where", ["here", "cluster"])
def test_one_that_fails_leaves_the_others_alone(where, tmp_path, capfd, request):
    one, other = several(tmp_path)
    words = ["--set", "klip.truncate=2", "--report", one.out]
    if where == "cluster":
        words += ["--scheduler", request.getfixturevalue("client").scheduler.address]
    assert one.command(tmp_path / "none.json", other.asn, *words) == 3
    told = capfd.readouterr()
    assert re.search(r"3 associations: 2 done, 1 failed, [0-9.]+ s", told.err)
    assert "none.json: no such file, expected" in told.err.strip().split("\n")[-1]
    assert told.err.count("gpucoron: error:") == 1
    written = [str(p) for p in one.out.iterdir() if p.suffix in (".fits", ".html")]
    assert sorted(told.out.split()) == sorted(written)
    assert len(told.out.split()) == 2 * 12
    assert sum(name.endswith("_report.html") for name in one.files()) == 2


def test_two_that_would_write_one_file(tmp_path, capsys):
    one, other = TinySet(tmp_path / "a"), TinySet(tmp_path / "b")
    assert one.command(other.asn) == 2
    assert re.search("would both write .*; run them into different", capsys.readouterr().err)
    assert not list(one.out.rglob("*.fits"))
    assert one.command(other.asn, "--report", "one.html") == 2


def test_one_on_each_device(tmp_path):
    sets = several(tmp_path)
    out = tmp_path / "out"
    options = [RunOptions(s.asn, output_dir=out, save=frozenset({"psfsub", "i2d"})) for s in sets]
    out.mkdir()
    outcomes = [AssociationOutcome(str(own.asn)) for own in options]

    told = []
    console = types.SimpleNamespace(progress=lambda *event: told.append(event))
    cli_many._run_on_devices(list(map(make_request, options)), outcomes, ["cpu", "cpu"], console)
    assert [len(outcome.done.result.files) for outcome in outcomes] == [3, 3]
    assert told[-1] == ("associations", 2, 2)
    assert len({outcome.done.worker for outcome in outcomes}) == 2


def test_a_process_that_dies(tmp_path):
    child = cli_many._Child("cpu")
    child.process.kill()
    child.process.join()
    child.submit(RunRequest(RunOptions(Path("asn"), output_dir=Path("out"))))
    done, error = child.receive()
    assert done is None and "the process that worked there ended with -9" in str(error)
