"""The record that a run leaves beside its products."""

import json
import re
import zlib
from datetime import datetime

import numpy as np
import pytest
from astropy.io import fits

import gpucoron
from gpucoron.errors import ExposureError
from gpucoron.pipeline.product_writer import ProductWriter
from tests.helpers.tiny_sets import NAME, one_thread  # noqa: F401


def run(tiny, **options):
    options = {"device": "cpu", "output_dir": tiny.out, "klip_truncate": 3} | options
    return gpucoron.run(tiny.asn, **options)


def test_a_complete_run(tiny):
    result = run(tiny, psfmask=tiny.mask, threads=1)
    found = tiny.record()
    assert (found["status"], found["exit_status"], found["error"]) == ("complete", 0, None)
    start, end = (datetime.fromisoformat(found[key]) for key in ("start", "end"))
    assert start.utcoffset().total_seconds() == 0 and 0 < (end - start).total_seconds() < 100
    assert found["gpucoron"] == gpucoron.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert (found["device"]["label"], found["device"]["name"]) == ("cpu", result.device.name)
    assert found["parameters"] == json.loads(json.dumps(result.parameters.flat()))
    assert found["threads"] == 1 and found["resumed"] is None
    assert found["timings"].keys() == result.timings.keys()
    assert all(abs(t - result.timings[step]) < 0.5 for step, t in found["timings"].items())
    assert 2**20 < found["peak_memory_bytes"] < 2**36 and found["device_memory_bytes"] == []
    assert found["warnings"] == list(result.warnings)
    given = [tiny.asn, tiny.mask, *tiny.psf, *tiny.science]
    assert found["inputs"] == [
        {"path": str(p), "size": p.stat().st_size, "crc32": f"{zlib.crc32(p.read_bytes()):08x}"}
        for p in given
    ]
    (mask,) = found["psfmasks"].values()
    assert mask["name"] == str(tiny.mask)


def test_products_are_named_with_the_checksums_of_their_hdus(tiny):
    result = run(tiny, save=("crfints", "psfalign", "psfsub", "i2d", "median"))
    entries = {e["name"]: e for e in tiny.record()["files"]}
    assert entries.keys() == {p.name for p in result.files} and len(entries) == 15
    for path in result.files:
        entry = entries[path.name]
        assert entry["state"] == "complete" and entry["size"] == path.stat().st_size
        with fits.open(path) as hdus:
            assert entry["checksums"] == {h.name: h.header["CHECKSUM"] for h in hdus}
    left = {p.name for p in tiny.out.iterdir()}
    assert left == {*entries, f"{NAME}_run.json"}  # no lock, nothing half-written


def test_while_it_runs_the_record_tells_what_is_complete(tiny, monkeypatch):
    seen, real = [], ProductWriter.write

    def write(self, path, *args):
        self.background.wait()
        content = tiny.record()
        seen.append(sum(e["state"] == "complete" for e in content["files"]))
        assert content["status"] == "running" and content["end"] is None
        assert len(content["files"]) == 11 and (tiny.out / f".{NAME}.lock").exists()
        real(self, path, *args)

    monkeypatch.setattr(ProductWriter, "write", write)
    run(tiny)
    assert seen[0] == 0 and seen[-1] == 10 and seen == sorted(seen)


def test_a_run_that_fails(tiny):
    tiny.edit(tiny.psf[1], FILTER="F335M")
    with pytest.raises(ExposureError) as caught:
        run(tiny)
    assert not getattr(caught.value, "__notes__", None)
    if tiny.out.is_dir() and list(tiny.out.iterdir()):
        found = tiny.record()
        assert (found["status"], found["exit_status"]) == ("failed", 3)
        assert found["error"] == str(caught.value)
        assert {e["state"] for e in found["files"]} == {"pending"}


def test_a_defect_is_recorded_and_notes_what_is_complete(tiny, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("no")

    monkeypatch.setattr("gpucoron.pipeline.product.combine", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        run(tiny)
    note = f"10 of 11 products are complete in {tiny.out}, --resume continues"
    assert caught.value.__notes__ == [note]
    found = tiny.record()
    assert (found["status"], found["exit_status"]) == ("failed", 1)
    assert found["error"] == "ZeroDivisionError: no"
    assert [e["name"] for e in found["files"] if e["state"] == "pending"] == [f"{NAME}_i2d.fits"]
    monkeypatch.undo()
    run(tiny, resume=True)
    resumed = {"start": found["start"], "status": "failed", "taken_over": 10}
    assert tiny.record()["resumed"] == resumed


def test_warnings_of_the_run_that_is_continued_are_kept(tiny):
    tiny.edit(tiny.science[0], VAR_RNOISE=None)
    run(tiny)
    first = tiny.record()["warnings"]
    (tiny.out / f"{NAME}_i2d.fits").unlink()
    run(tiny, resume=True)
    assert set(tiny.record()["warnings"]) >= set(first) != set()


def test_several_products_have_one_record_and_all_their_names_are_held(tiny, monkeypatch):
    tiny.split("one", "two")
    locks, real = [], ProductWriter.write

    def write(self, path, *args):
        locks.append(sorted(p.name for p in tiny.out.glob(".*.lock")))
        real(self, path, *args)

    monkeypatch.setattr(ProductWriter, "write", write)
    run(tiny)
    assert all(found == [".one.lock", ".two.lock"] for found in locks)
    found = tiny.record()
    assert found["psfmasks"].keys() == {"one", "two"} and not list(tiny.out.glob("two_run.json"))
    assert {e["state"] for e in found["files"]} == {"complete"}
    assert len(found["inputs"]) == len({e["path"] for e in found["inputs"]}) == 6
    for name in ("one_i2d.fits", "two_psfstack.fits"):
        (tiny.out / name).unlink()
    run(tiny, resume=True)
    assert tiny.record()["resumed"]["taken_over"] == len(found["files"]) - 2


def test_the_command_is_in_the_record_and_nothing_where_nothing_is_written(tiny, monkeypatch):
    run(tiny, save=())
    assert not tiny.out.exists()
    monkeypatch.setattr("sys.argv", ["gpucoron", "asn.json", "-q"])
    assert tiny.command("-q") == 0
    assert tiny.record()["command"] == ["gpucoron", "asn.json", "-q"]
    assert re.fullmatch(r"3\.\d+\.\d+.*", tiny.record()["versions"]["python"])


# ---- a log for machines
@pytest.mark.parametrize("where", ["run.jsonl", "-"])
def test_log_json(where, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.edit(tiny.science[0], VAR_RNOISE=None)
    assert tiny.command("--log-json", where) == 0
    err = capsys.readouterr().err
    lines = err if where == "-" else (tmp_path / where).read_text()
    found = [json.loads(line) for line in lines.splitlines()]
    for line in found:
        assert list(line) == ["time", "level", "event", "step", "text", "numbers"]
        assert datetime.fromisoformat(line["time"]).tzinfo is not None
    assert {line["event"] for line in found} == {"log", "progress", "step", "end"}
    assert found[-1]["event"] == "end" and found[-1]["numbers"] == {"exit_status": 0}
    progress = [line for line in found if line["event"] == "progress"]
    assert {line["step"] for line in progress} > {"read", "outlier_detection", "resample"}
    assert all(0 < line["numbers"]["done"] <= line["numbers"]["total"] for line in progress)
    steps = {line["step"]: line["numbers"] for line in found if line["event"] == "step"}
    assert all(numbers["seconds"] >= 0 for numbers in steps.values())
    assert steps.keys() == tiny.record()["timings"].keys()
    assert any(line["level"] == "warning" for line in found)


def test_log_json_tells_how_a_run_failed(tiny, tmp_path, capsys):
    tiny.edit(tiny.psf[1], FILTER="F335M")
    assert tiny.command("--log-json", tmp_path / "log") == 3
    last = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert last["event"] == "end" and last["level"] == "error"
    assert last["numbers"] == {"exit_status": 3} and "FILTER is F335M" in last["text"]
    assert tiny.command("--log-json", "/none/where") == 5
    assert "/none/where: cannot write the log: No such file" in capsys.readouterr().err
