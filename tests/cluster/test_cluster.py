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
from dataclasses import replace
from pathlib import Path

import pytest
from astropy.io import fits

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
from tests.helpers.tiny_sets import TinySet, complete, one_thread  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]
OPTIONS = {"device": "cpu", "klip_truncate": "2,3"}


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs="CRITICAL",
        ) as workers,
        distributed.Client(workers) as connected,
    ):
        yield connected


def comparable(path):
    """All of a product but when it was made."""
    content = []
    with fits.open(path, memmap=False) as hdus:
        for hdu in hdus:
            header = [
                str(card)
                for card in hdu.header.cards
                if card.keyword not in ("DATE", "CHECKSUM", "DATASUM")
            ]
            data = b"" if hdu.data is None else hdu.data.tobytes()
            if hdu.name == "ASDF":
                data = re.sub(rb"\bdate: '[^']*'", b"", data)
            content.append((header, data))
    return content


def same(folder, other):
    """Assert that two folders hold the same products, all whole; return their names."""
    names, others = (sorted(p.name for p in f.glob("[!.]*.fits")) for f in (folder, other))
    assert names == others
    for name in names:
        complete(other / name)
        assert comparable(folder / name) == comparable(other / name), name
    return names


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
    (path,) = tiny.out.glob("*_run.json")
    record = json.loads(path.read_text())
    assert record["status"] == "complete" and record["device"]["label"] == "cpu"
    assert {e["state"] for e in record["files"]} == {"complete"}
    assert all(e["crc32"] for e in record["inputs"])
    words = ["--psfmask", tiny.mask, "--resume", *(["--save", ",".join(save)] if save else [])]
    ran = python("-m", "gpucoron", *tiny.words(*words))
    n = len(record["files"])
    assert ran.returncode == 0, ran.stderr
    assert f"--resume: {n} of {n} products are complete already" in ran.stderr


def test_one_run_at_a_time_in_a_folder(tiny, client):
    tiny.out.mkdir()
    name = json.loads(tiny.asn.read_text())["products"][0]["name"]
    lock = FolderLock(tiny.out, name)
    try:
        with pytest.raises(OutputError, match="another run .* writes"):
            gpucoron.run(tiny.asn, "cpu", tiny.out, client=client)
    finally:
        lock.release()


def test_a_run_on_the_cluster_continues_an_interrupted_one(tiny, client):
    options = {"psfmask": tiny.mask, "client": client}
    first = gpucoron.run(tiny.asn, "cpu", tiny.out, **options)
    lost = next(path for path in first.files if path.name.endswith("_i2d.fits"))
    lost.unlink()
    again = gpucoron.run(tiny.asn, "cpu", tiny.out, resume=True, **options)
    (path,) = tiny.out.glob("*_run.json")
    assert json.loads(path.read_text())["resumed"]["taken_over"] == len(first.files) - 1
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
    with pytest.raises(MaskError, match="the psfmask has shape"):
        with fits.open(tiny.mask) as hdus:
            hdus["SCI"].data = hdus["SCI"].data[:-1]
            hdus.writeto(tiny.folder / "other.fits")
        gpucoron.run(tiny.asn, "cpu", tiny.out, psfmask=tiny.folder / "other.fits", client=client)
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
    request = make_request(
        RunOptions(Path(tiny.asn), device="cpu", output_dir=tiny.out, save=frozenset({"i2d"}))
    )
    tiny.out.mkdir()
    done = run_request(request)
    assert len(pickle.dumps(request)) < 4000
    tables = sum(table.nbytes for table in done.result.product.fits.values())
    assert len(pickle.dumps(done)) < 10_000 + tables


def test_no_scheduler(tiny, capfd, monkeypatch):
    monkeypatch.setattr(cluster, "TIMEOUT", 1.0)
    start = time.monotonic()
    assert tiny.command("--scheduler", "tcp://127.0.0.1:9") == 4
    assert time.monotonic() - start < 8
    error = capfd.readouterr().err.strip()
    assert error.startswith("gpucoron: error: no Dask scheduler answers at tcp://127.0.0.1:9 (")
    assert "\n" not in error
    assert tiny.command("--scheduler", "nonsense") == 4
    error = capfd.readouterr().err.strip()
    assert error.startswith("gpucoron: error: no Dask scheduler answers at nonsense (")
    assert "\n" not in error


def test_the_scheduler_is_lost(tiny, tmp_path):
    scheduler = subprocess.Popen(
        [
            sys.executable,
            *"-m distributed.cli.dask_scheduler --port 0 --no-dashboard --scheduler-file".split(),
            tmp_path / "scheduler.json",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (tmp_path / "scheduler.json").exists():
            time.sleep(0.05)
        address = json.loads((tmp_path / "scheduler.json").read_text())["address"]
        run = subprocess.Popen(
            [sys.executable, "-m", "gpucoron", *tiny.words("--scheduler", address)],
            stderr=subprocess.PIPE,
            text=True,
        )
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
        asn = tiny.asn.with_name(f"set{k}.json")
        tiny.asn = tiny.asn.rename(asn)
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
    assert sorted(told.out.split()) == sorted(
        str(p) for p in one.out.iterdir() if p.suffix in (".fits", ".html")
    )
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

    class Console:
        told = []

        def progress(self, *event):
            self.told.append(event)

    cli_many._run_on_devices(list(map(make_request, options)), outcomes, ["cpu", "cpu"], Console())
    assert [len(outcome.done.result.files) for outcome in outcomes] == [3, 3]
    assert Console.told[-1] == ("associations", 2, 2)
    workers = {outcome.done.worker for outcome in outcomes}
    assert len(workers) == 2


def test_a_process_that_dies(tmp_path):
    child = cli_many._Child("cpu")
    child.process.kill()
    child.process.join()
    child.submit(RunRequest(RunOptions(Path("asn"), output_dir=Path("out"))))
    done, error = child.receive()
    assert done is None and "the process that worked there ended with -9" in str(error)
