"""What people are told on a terminal, in a pipe, and in a log file."""

import io
import logging
import re
import time
import types
import warnings

import pytest

from gpucoron.cli.console import Console, format_table

log = logging.getLogger("gpucoron")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_without_a_terminal_is_at_most_a_line_per_tenth(monkeypatch):
    clock = iter(range(0, 10**6, 3))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with Console(stream=stream) as console:
        for done in range(1001):
            console.progress("align_refs", done, 1000)
        console.progress("klip", 1, 2, "exposure b")
        console.progress("klip", 2, 2, "exposure b")
        console.progress("empty", 0, 0)
    lines = stream.getvalue().splitlines()
    assert 5 <= sum("align_refs: " in line for line in lines) <= 10
    assert lines[-1].endswith("  klip: 2 of 2, exposure b")


def test_short_steps_speak_once():
    stream = io.StringIO()
    with Console(stream=stream) as console:
        for _ in range(2):  # two products
            for done in range(101):
                console.progress("klip", done, 100)
            console.progress("resample", 1, 1)
    lines = [line[10:] for line in stream.getvalue().splitlines()]
    assert lines == 2 * ["klip: 100 of 100", "resample: 1 of 1"]


def test_progress_on_a_terminal_draws_bars_and_lines():
    stream = Terminal()
    with Console(stream=stream) as console:
        log.info("before [not markup]")
        for done in range(11):
            console.progress("align_refs", done, 10, "exposure [a]")
            log.info("line %d", done)
        console.progress("klip", 1, 2)
        console.summary(types.SimpleNamespace(timings={"klip": 1.0}, warnings=[]))
        log.info("after")
    text = stream.getvalue()
    assert "before [not markup]" in text and "line 7" in text and "after" in text
    assert "align_refs" in text and "exposure [a]" in text and "s left" not in text


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_a_terminal_has_coloured_warnings_whole_words_and_the_time_left(monkeypatch, no_colour):
    for name, value in (("COLUMNS", "60"), ("TERM", "xterm"), ("NO_COLOR", no_colour)):
        monkeypatch.setenv(name, value)
    stream, name = Terminal(), f"/data/{70 * 'x'}_calints.fits"
    with Console(stream=stream) as console:
        log.warning("%s: %s", name, "the quick brown fox jumps over the lazy dog, " * 3)
        log.debug("expected", extra={"expected_s": 75.0})
        console.progress("align_refs", 1, 10)
        console.progress("align_refs", 2, 10)
        time.sleep(0.15)  # a bar is drawn ten times a second
    text = stream.getvalue()
    assert ("\x1b[33m" in text) == (not no_colour)
    assert re.search(r"whole run.*about 7[45] s left", text)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()
    (long,) = (line for line in lines if len(line) > 60)
    assert long.strip() == f"{name}:"  # which cannot be broken
    words = " ".join(lines[: lines.index(long) + 4]).split()
    assert words.count("jumps") == 3 and words.count("dog,") == 3


def test_levels():
    for verbosity, shown in ((-1, "w"), (0, "iw"), (1, "diw"), (2, "diw")):
        stream = io.StringIO()
        with Console(verbosity, stream=stream) as console:
            log.debug("d")
            log.info("i")
            log.warning("w")
            console.progress("klip", 1, 1)
        lines = [line[10:] for line in stream.getvalue().splitlines()]
        assert [line for line in lines if "klip" not in line] == [
            "warning: w" if c == "w" else c for c in shown
        ]
        assert ("klip: 1 of 1" in lines) == (verbosity >= 0)


def test_each_warning_is_shown_once():
    stream = io.StringIO()
    with Console(stream=stream) as console:
        for _ in range(2):
            log.warning("reference %d left out", 3)
        timings, warned = {"klip": 1.0, "resample": 3.0}, ["reference 3 left out", "another"]
        console.summary(types.SimpleNamespace(timings=timings, warnings=warned), 5.0)
    lines = [line[10:] for line in stream.getvalue().splitlines()]
    assert lines == [
        "warning: reference 3 left out",
        "step             seconds",
        "klip                1.00  20 %",
        "resample            3.00  60 %",
        "everything else     1.00  20 %",
        "total               5.00",
        "warning: another",
        "2 warnings, above",
    ]


def test_warnings_of_other_packages_go_to_the_log_file_only(tmp_path, capsys):
    with Console(1, tmp_path / "run.log"), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("somebody's", UserWarning, stacklevel=1)
    assert "somebody's" not in capsys.readouterr().err
    assert "somebody's" in (tmp_path / "run.log").read_text()


def test_format_table():
    table = format_table([("a", 1), ("bcd", 22)], ("x", "n"), right=(1,))
    assert table == ["x     n", "a     1", "bcd  22"]
