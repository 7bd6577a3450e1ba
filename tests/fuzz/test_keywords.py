"""Odd values in header keywords, association and record: a result, or one line and an exit code.

All keywords that gpucoron reads have one odd value at a time; a search over each by itself is left
to whoever changes what is read.
"""

import dataclasses
import json

import numpy as np
import pytest

from gpucoron.backend.device import cpu_device
from gpucoron.core.parameters import Parameters
from gpucoron.io.exposures import ExposureMeta
from gpucoron.io.keywords import keywords
from gpucoron.pipeline.run_record import RunRecord
from tests.fuzz.bounds import bounded, one_line
from tests.helpers.tiny_sets import one_thread, only_error  # noqa: F401

pytestmark = pytest.mark.slow

OPTIONS = "-q --save i2d --set klip.truncate=2".split()
USED = [field.metadata["keyword"] for field in dataclasses.fields(ExposureMeta)]
OTHERS = sorted({row.keyword for row in keywords()} - set(USED))
VALUES = {
    "infinite": "1E400",
    "huge": "-1E300",
    "tiny": "1E-300",
    "a long integer": "99999999999999999999",
    "the largest": "9223372036854775807",
    "text": f"'{'x' * 66}'",
    "true": "T",
    "no value": "",
}


def set_cards(path, names, value):
    """Write a value as it stands into the cards of a file, where astropy would refuse it."""
    content, starts = bytearray(path.read_bytes()), [f"{name:<8}= ".encode() for name in names]
    for at in range(0, min(len(content), 400_000), 80):
        start = bytes(content[at : at + 10])
        if start in starts:
            text = value if value.startswith("'") else f"{value:>20}"
            content[at : at + 80] = (start + text.encode()).ljust(80)
    path.write_bytes(content)


def run(tiny, capsys, *options):
    """Run; return the exit code, having looked at what is said."""
    capsys.readouterr()
    with bounded(60):
        code = tiny.command(*OPTIONS, *options)
    err = capsys.readouterr().err
    assert code in (0, 2, 3) and "Traceback" not in err and "internal" not in err, err
    for line in err.splitlines():
        one_line(line)
    assert code == 0 or only_error(err)
    assert tiny.files() == [] or code == 0
    return code


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_keywords_that_products_inherit(value, tiny, capsys):
    for path in (*tiny.science, *tiny.psf[:1]):
        set_cards(path, OTHERS, value)
    report = ["--report", tiny.folder] if value == VALUES["huge"] else []  # takes seconds
    assert run(tiny, capsys, *report) == 0


@pytest.mark.parametrize(
    "keyword, value, code",
    [
        *((name, "1E400", 3) for name in ("RA_REF", "ROLL_REF", "XPOSURE", "PIXAR_SR", "PIXAR_A2")),
        *(("VPARITY", "0.5", 3), ("DEC_REF", "T", 3), ("V3I_YANG", "'text'", 3)),
        *(("RA_REF", "1E300", 3), ("ROLL_REF", "-1E300", 0), ("PIXAR_SR", "-1", 0)),
        *(("V3I_YANG", "0", 0), ("VPARITY", "0", 0), ("DATE-OBS", "5", 0)),
        *(("CRPIX1", "99999999999999999999", 0), ("S_REGION", "'POLYGON ICRS 1 2'", 0)),
    ],
)
def test_keywords_that_are_used(keyword, value, code, tiny, capsys):
    for path in (*tiny.science, *tiny.psf):
        set_cards(path, [keyword], value)
    assert run(tiny, capsys) == code


@pytest.mark.parametrize("value", [None, True, -1, 1e308, 10**400, "x" * 5000, "\x1b[31m", [], {}])
def test_entries_of_the_association(value, tiny, capsys):
    """The name of products depends on the first; the others are copied."""
    others = "asn_pool asn_type program target version_id degraded_status".split()
    tiny.edit_asn(lambda content: content.update(dict.fromkeys(others, value)))
    assert run(tiny, capsys, "--set", "klip.skip=true") == 0
    tiny.edit_asn(lambda content: content.update(asn_id=value))
    with bounded(60):
        assert tiny.command(*OPTIONS, "--dry-run") in (0, 3)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, "text", [[1]], {"a": 1}])
def test_entries_of_a_record(value, tiny, tmp_path):
    """What cannot be used is ignored; what can be has none of the types that would fail later."""
    record = RunRecord(Parameters(), cpu_device())
    path = tmp_path / "a_run.json"
    record.begin(["a"], [tmp_path / "a_i2d.fits"], [tiny.asn])
    with record:
        record.check_psfmask("a", "N/A", np.ones(2))
    content = json.loads(path.read_text())
    for name in content:
        path.write_text(json.dumps({**content, name: value}))
        again = RunRecord(Parameters(), cpu_device(), continuing=True)
        with again:
            again.begin(["a"], [tmp_path / "a_i2d.fits"], [tiny.asn])
            again.check_psfmask("a", "N/A", np.ones(2))
        assert json.loads(path.read_text())["status"] == "complete"
