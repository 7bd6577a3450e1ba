"""Standard streams that are closed, full or ASCII; logs on full disks; lines that are safe to show.

Where products are whole, none of them changes how a run ends.
"""

import json
import logging
import os
import sys
from pathlib import Path

import pytest

from gpucoron.cli import main as cli
from gpucoron.cli.streams import LogFile, SafeFormatter
from gpucoron.errors import OutputError, printable
from tests.helpers.tiny_sets import one_thread, only_error, wait  # noqa: F401

FULL = Path("/dev/full")
WORDS = "-q --save i2d --set klip.truncate=2".split()
HOSTILE = "a\x1b]0;owned\x07\x9b31m\nb\u202ec\u2028d\udcffe"
SHOWN = r"a\x1b]0;owned\x07\x9b31m\nb\u202ec\u2028d\udcffe"
CLOSED, NOBODY_READS = "closed", "a pipe that nobody reads"

needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


# ---- logs
@needs_full
@pytest.mark.parametrize("option", ["--log-file", "--log-json"])
def test_a_log_that_cannot_be_written_is_one_warning(option, tiny, capsys):
    assert tiny.command(*WORDS, option, FULL) == 0
    err = capsys.readouterr().err
    assert err.count("/dev/full") == 1 and "Traceback" not in err
    assert "cannot write the log: is a device, expected a file; going on without it" in err


def test_a_disk_that_fills_up_under_a_log(tmp_path, caplog):
    log_file = LogFile(tmp_path / "log")
    log_file.stream.close()
    log_file.stream = FULL.open("w")
    for _ in range(3):
        log_file.handle(logging.makeLogRecord({"msg": "text", "levelno": logging.INFO}))
    log_file.close()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path / 'log'}: cannot write the log: No space left on device; going on without it"
    )


@pytest.mark.parametrize("option", ["--log-file", "--log-json"])
@pytest.mark.parametrize("name", ["asn", "mask", "pipe", "folder", "none/log"])
def test_logs_replace_nothing_but_logs(option, name, tiny, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    path = getattr(tiny, name, tmp_path / name)
    before = tiny.sums()
    assert tiny.command(*WORDS, option, path) == 5
    assert f"{path}: cannot write the log: " in only_error(capsys.readouterr().err)
    assert tiny.sums() == before and tiny.files() == []


def test_a_log_replaces_an_earlier_one(tiny, tmp_path):
    """Also one of the other kind."""
    tiny.asn.write_text("{}")
    for option in ("--log-file", "--log-json", "--log-json", "--log-file"):
        assert tiny.command("-q", option, tmp_path / "log") == 3
    text = (tmp_path / "log").read_text()
    assert text.count("AssociationError") == 1 and not text.startswith("{")


def test_the_file_of_a_log_that_is_no_text(tmp_path):
    (tmp_path / "log").write_bytes(bytes(range(256)))
    with pytest.raises(OutputError, match="expected a new file or an earlier log"):
        LogFile(tmp_path / "log")


# ---- streams; the runs are forks of a process that has all imported and compiled
def forked(words, streams, encoding="utf-8"):
    """Run the command in a fork with other streams, by number; return its exit code.

    A stream is `CLOSED`, `NOBODY_READS`, or the path of a file.
    """
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            for number, where in streams.items():
                replace_stream(number, where, encoding)
            code = cli.main([str(word) for word in words])
            sys.stdout.flush()  # as Python does at its end
            sys.stderr.flush()
        finally:
            os._exit(code)
    return wait(pid)


def replace_stream(number, where, encoding):
    """Do to a stream of this process what a shell and the start of Python do."""
    name, errors = ("stdin", "stdout", "stderr")[number], (None, "strict", "backslashreplace")
    if where is CLOSED:
        os.close(number)
        setattr(sys, name, None)
        return
    if where is NOBODY_READS:
        reading, other = os.pipe()
        os.close(reading)
    else:
        other = os.open(where, os.O_WRONLY | os.O_CREAT)
    os.dup2(other, number)
    os.close(other)
    setattr(sys, name, open(number, "w", encoding=encoding, errors=errors[number], closefd=False))


@pytest.mark.parametrize(
    "streams, said",
    [
        ({1: CLOSED}, "stdout is closed; what would be written there is lost"),
        ({0: CLOSED, 1: CLOSED, 2: CLOSED}, None),
        pytest.param({1: FULL, 2: FULL}, None, marks=needs_full),
        ({1: NOBODY_READS}, ""),
        ({1: NOBODY_READS, 2: NOBODY_READS}, None),
    ],
)
def test_streams_that_cannot_be_written(streams, said, tiny, tmp_path):
    assert forked(tiny.words(*WORDS[1:]), {2: tmp_path / "err", **streams}) == 0
    assert len(tiny.files()) == 1 and tiny.record()["status"] == "complete"
    if said is not None:
        err = (tmp_path / "err").read_text()
        assert "Traceback" not in err and "rror" not in err and said in err


def test_an_ascii_terminal_shows_escapes(tiny, tmp_path):
    tiny.out = tmp_path / "é\x1b[2J"
    files = {1: tmp_path / "out", 2: tmp_path / "err"}
    assert forked(tiny.words(*WORDS[1:]), files, "ascii") == 0
    out, err = (path.read_bytes() for path in files.values())
    assert rb"\xe9\x1b[2J" in out and out.isascii() and err.isascii()
    assert b"\x1b" not in out + err


@needs_full
def test_a_full_disk_is_an_error_where_nothing_else_is_written(tiny, tmp_path):
    err = tmp_path / "err"
    assert forked([tiny.asn, "--dry-run"], {1: FULL, 2: err}) == 5
    assert only_error(err.read_text()) == "gpucoron: error: No space left on device"


# ---- what is shown
def test_what_acts_on_a_terminal_is_shown_as_escapes():
    assert printable(HOSTILE) == SHOWN and printable("é ü 天") == "é ü 天"
    record = logging.makeLogRecord({"msg": "%s", "args": (HOSTILE,)})
    assert SafeFormatter("%(message)s").format(record) == SHOWN
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record.exc_info = sys.exc_info()
    lines = SafeFormatter("%(message)s").format(record).splitlines()
    assert len(lines) > 2 and all(line.isprintable() for line in lines)


def test_names_in_files_do_not_reach_the_terminal(tiny, tmp_path, capsys):
    """The name of the association, in a warning; a keyword's text, in an error; both logs."""
    tiny.edit_asn(lambda content: content.pop("asn_id") and None)
    tiny.asn = tiny.asn.rename(tiny.folder / "x\x1b[31m\n12:00:00  all is well\u202e_asn.json")
    logs = tmp_path / "log", tmp_path / "json"
    tiny.psf[0].unlink()
    assert tiny.command("--log-file", logs[0], "--log-json", logs[1]) == 3
    texts = [capsys.readouterr().err, logs[0].read_text()]
    texts.append("\n".join(json.loads(line)["text"] for line in logs[1].read_text().splitlines()))
    for text in texts:
        assert r"x\x1b[31m\n12:00:00  all is well\u202e_asn.json" in text
        assert all(line.isprintable() for line in text.splitlines())
