"""Whole runs on damaged inputs, for a search that takes its time: GPUCORON_FUZZ_EXAMPLES=200."""

import json
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucoron.cli import main as cli
from tests.fuzz.bounds import EXAMPLES, bounded, fuzz, one_line, whole
from tests.fuzz.hostile_fits import files
from tests.helpers.tiny_sets import one_thread, simulated  # noqa: F401

OPTIONS = "--device cpu -q --set klip.truncate=2".split()
MORE = (
    "--skip-bad --no-checksums --preset=jwst --align=first --set=resample.weight_type=exptime"
).split()


@pytest.mark.skipif(not EXAMPLES, reason="only where GPUCORON_FUZZ_EXAMPLES is set: 0.5 s a run")
@given(data=st.data())
@fuzz(1)
def test_a_run(data, tmp_path_factory, capsys):
    """Either all products and exit code 0, or one line, an exit code and no half of anything."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(simulated().made.directory, folder / "in")
    asn = folder / "in" / simulated().made.asn.name
    members = [m["expname"] for m in json.loads(asn.read_text())["products"][0]["members"]]
    for name in data.draw(st.lists(st.sampled_from(members), min_size=1, max_size=2, unique=True)):
        (folder / "in" / name).write_bytes(data.draw(files(int("003001" not in name) ^ 1)))
    options = data.draw(st.lists(st.sampled_from(MORE), max_size=2, unique=True))
    capsys.readouterr()
    with bounded(60):
        code = cli.main([str(asn), "--output-dir", str(folder / "out"), *OPTIONS, *options])
    err = capsys.readouterr().err
    assert "Traceback" not in err and "internal error" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("gpucoron: error: ")]
    assert len(lines) == int(code != 0), err
    for line in err.splitlines():
        one_line(line)
    names = sorted(p.name for p in (folder / "out").rglob("*")) if code == 0 else []
    assert not [n for n in names if n.startswith(".")]
    if code == 0:
        assert sum(bool(re.search(r"_i2d\.fits$", n)) for n in names) == 1
        for path in (folder / "out").glob("*i2d.fits"):
            whole(path)
    shutil.rmtree(folder)
