"""Ctrl-C and SIGTERM: within two seconds, at whatever moment, nothing half-written is left."""

import os
import re
import signal
import time

import pytest

from gpucoron.backend import signals
from gpucoron.io import second_process
from tests.helpers import chance
from tests.helpers.tiny_sets import TinySet, one_thread, wait  # noqa: F401
from tests.pipeline.test_kill import alone, contents, look

WORDS = ("-q", "--set", "klip.truncate=3", "--threads", "2")
STOPS = 16 if chance.EVERYTHING else 6
ERROR = "gpucoron: error: {}; {} of 11 products are complete in {}, --resume continues\n"
CODES = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}


def start(tiny, err, hold=lambda: None):
    """Run the command in a fork of this process; `hold` is done to it first."""

    def before():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        hold()

    return tiny.fork(*WORDS, "--resume", err=err, before=before)


def stop(pid, number):
    """Send a signal; return the exit code and how long the end took."""
    sent = time.monotonic()
    os.kill(pid, number)
    return wait(pid), time.monotonic() - sent


@pytest.mark.slow
def test_stopped_at_random_moments(tmp_path):
    tiny = TinySet(tmp_path)
    assert tiny.command(*WORDS) == 0
    second_process._import_all()  # once for all forks, which do without the second process
    right, err = contents(tiny.out), tmp_path / "err"
    tiny.out = tmp_path / "timed"
    begun = time.monotonic()
    wait(start(tiny, err, alone))
    wall = time.monotonic() - begun
    moments, chains = chance.moments(STOPS, "stops"), 0
    while moments:
        tiny.out, chains = tmp_path / f"chain{chains}", chains + 1
        code = None
        while code != 0 and moments:
            number = list(CODES)[len(moments) % 2]
            pid = start(tiny, err, alone)
            time.sleep(0.02 + 0.8 * wall * moments[-1])
            code, seconds = stop(pid, number)
            assert seconds < 2
            if code != -number:  # before there was anything to end cleanly
                assert code in (0, CODES[number][0]), err.read_text()
            if code != 0:
                moments.pop()
            whole, rest = look(tiny.out)
            assert rest == []
            if code > 0 and "--resume" in err.read_text():
                word = CODES[number][1]
                assert tiny.record()["status"] == word
                told = re.search(ERROR.format(word, r"(\d+)", tiny.out), err.read_text())
                # the last may have its name and not yet its entry in the record (seen once)
                assert len(whole) - int(told[1]) in (0, 1)
                assert not list(tiny.out.glob(".*"))
        if code == 0:
            assert contents(tiny.out) == right
    assert wait(start(tiny, err, alone)) == 0
    assert contents(tiny.out) == right


@pytest.mark.parametrize("number", CODES)
def test_compiled_code_that_goes_on_is_left_behind(number, tmp_path):
    """Nothing in the main thread can see the signal, while the one beside still writes."""
    tiny, err = TinySet(tmp_path), tmp_path / "err"
    assert tiny.command(*WORDS) == 0
    tiny.out = tmp_path / "held"

    def hold():
        from hashlib import pbkdf2_hmac

        from gpucoron.pipeline import subtraction

        def klip(*args, **kwargs):
            (tmp_path / "deep").touch()
            pbkdf2_hmac("sha256", b"", b"", 10**9)

        subtraction.klip = klip

    pid = start(tiny, err, hold)
    while not (tmp_path / "deep").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    assert list(tiny.out.glob(".*_psfalign.fits.*.part"))
    code, seconds = stop(pid, number)
    assert code == CODES[number][0] and signals.GRACE_S < seconds < 2
    whole, rest = look(tiny.out)
    assert rest == [] and len(whole) == 5 and not list(tiny.out.glob(".*"))
    word = CODES[number][1]
    assert err.read_text() == ERROR.format(word, 5, tiny.out)
    assert tiny.record()["status"] == word
    assert tiny.command(*WORDS, "--resume") == 0
    assert tiny.record()["resumed"]["taken_over"] == 5


def test_a_second_signal_does_not_disturb_the_end(tmp_path):
    seen = []
    with pytest.raises(signals.Terminated):
        with signals.graceful_shutdown():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                seen.append("cleaned")
    assert seen == ["cleaned"]


def test_handlers_are_given_back_and_an_ignored_ctrl_c_stays_ignored():
    def handlers():
        return [signal.getsignal(n) for n in CODES]

    before = handlers()
    with signals.graceful_shutdown():
        assert handlers() != before
    assert handlers() == before
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.graceful_shutdown():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "stop, code, text",
    [
        (KeyboardInterrupt, 130, "interrupted"),
        (signals.Terminated, 143, "terminated"),
        (ValueError, 1, "internal error: RuntimeError: cannot release un-acquired lock"),
    ],
)
def test_a_signal_while_something_is_imported(monkeypatch, capsys, stop, code, text):
    """What importlib raises in place of the signal's exception does not hide that."""
    from gpucoron.cli import main as cli

    def interrupted(argv):
        try:
            raise stop
        finally:
            raise RuntimeError("cannot release un-acquired lock")

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert cli.main(["asn.json"]) == code
    assert capsys.readouterr().err.startswith(f"gpucoron: error: {text}")
