"""Opening and replacing files: regular ones alone, by whatever name they are reached."""

import os
import signal
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpucoron.errors import InputError, OutputError
from gpucoron.io.files import (
    SameFiles,
    check_folder,
    check_replaceable,
    open_regular,
    output_file,
    read_input,
)
from gpucoron.io.fits.checksums import crc32
from gpucoron.io.products import preflight

WHAT = {"folder": "is a folder", "missing": "no such file"}


@contextmanager
def at_once():
    """Fail where something waits for more than five seconds."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(5)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["pipe", "socket", "device", "folder", "link to a pipe"])
def no_file(request, tmp_path, monkeypatch):
    """Make something that has a name and is no file; return its path and what it is called."""
    path = tmp_path / request.param
    if request.param == "socket":
        monkeypatch.chdir(tmp_path)  # for the name of a socket is short
        socket.socket(socket.AF_UNIX).bind("socket")
    elif request.param == "device":
        path = Path("/dev/zero")
    elif request.param == "folder":
        path.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        if request.param != "pipe":
            path.symlink_to(tmp_path / "pipe")
    return path, "is a folder" if request.param == "folder" else "is a pipe, a device or the like"


def test_what_is_no_file_is_neither_opened_nor_replaced(no_file):
    path, what = no_file
    with at_once():
        with pytest.raises(InputError, match=f"{path}: {what}, expected a list"):
            read_input(path, InputError, "a list", 100)
        for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT):
            with pytest.raises(OSError, match=what):
                open_regular(path, flags)
        with pytest.raises(OSError, match=what):
            crc32(path)
        with pytest.raises(OutputError, match=f"cannot write {path}: {what}, expected no such"):
            check_replaceable(path)
        with pytest.raises(OutputError, match=what), output_file(path):
            pytest.fail("it is written")
        with pytest.raises(OutputError, match=what):
            preflight(path.parent, [path.name])


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    """Between the look and the opening."""
    path, real = tmp_path / "file", os.stat
    path.touch()

    def stat(name, *args, **keywords):
        found = real(name, *args, **keywords)
        if str(name) == str(path):
            monkeypatch.undo()
            path.unlink()
            os.mkfifo(path)
        return found

    monkeypatch.setattr("gpucoron.io.files.os.stat", stat)
    with at_once(), pytest.raises(OSError, match="is a pipe"):
        open_regular(path, os.O_RDONLY)


@pytest.mark.parametrize("how", ["itself", "another path", "link", "hard link", "link of a folder"])
def test_a_file_is_the_same_by_any_name(how, tmp_path):
    path = tmp_path / "a" / "file"
    path.parent.mkdir()
    path.write_text("x")
    other = tmp_path / "a" / ".." / "a" / "file" if how == "another path" else path
    if how == "link":
        other = tmp_path / "link"
        other.symlink_to(path)
    elif how == "hard link":
        other = tmp_path / "hard"
        other.hardlink_to(path)
    elif how == "link of a folder":
        (tmp_path / "b").symlink_to(tmp_path / "a")
        other = tmp_path / "b" / "file"
    assert other in SameFiles([path]) and path in SameFiles([other])
    assert tmp_path / "none" not in SameFiles([path, tmp_path / "other", "nul\0"])
    with pytest.raises(OutputError, match="would replace an input of that name"):
        preflight(other.parent, [other.name], inputs=[path])


def test_a_link_that_leads_nowhere_is_replaced_and_not_followed(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="link exists"):
        check_replaceable(link, overwrite=False)
    with output_file(link) as file:
        file.write(b"x")
    assert not link.is_symlink() and [p.name for p in tmp_path.iterdir()] == ["link"]


def test_names_that_are_too_long_while_they_are_written(tmp_path):
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    with pytest.raises(OutputError, match=r"its name has \d+ bytes, expected at most") as caught:
        check_folder(tmp_path, ["a.fits", "é" * (longest // 2)])
    limit = int(str(caught.value).split()[-1])
    check_folder(tmp_path, ["a" * (limit - 5)])  # the serial number may have grown
    with output_file(tmp_path / ("a" * (limit - 5))) as file:
        file.write(b"x")
