"""What a run writes replaces no input and follows no link, and cannot fail late for its name."""

import os
import re
import resource
import shutil

import pytest

from gpucoron.cli import main as cli
from gpucoron.errors import OutputError
from gpucoron.pipeline.output_lock import FolderLock
from tests.helpers.tiny_sets import NAME, TinySet, one_thread, only_error  # noqa: F401

WORDS = "-q --save i2d --set klip.truncate=2".split()


def rename(tiny, name):
    tiny.edit_asn(lambda content: content["products"][0].update(name=name))


def mask_as_product(tiny):
    tiny.mask = tiny.mask.rename(tiny.folder / "own_i2d.fits")
    return ["--psfmask", tiny.mask]


def hard_link_to_the_mask(tiny):
    (tiny.folder / "own_i2d.fits").hardlink_to(tiny.mask)
    return ["--psfmask", tiny.mask]


def asn_as_record(tiny):
    tiny.asn = tiny.asn.rename(tiny.folder / "own_run.json")


def asn_as_report(tiny):
    tiny.asn = tiny.asn.rename(tiny.folder / "own_report.html")
    return ["--report", tiny.folder]


def parameters_as_product(tiny):
    path = tiny.folder / "own_i2d.fits"
    path.write_text("[klip]\ntruncate = 3\n")
    return ["--params", path]


def saved_over_what_is_read(tiny):
    path = tiny.folder / "used.toml"
    assert cli.main([str(tiny.asn), "--dry-run", "--save-params", str(path)]) == 0
    return ["--params", path, "--save-params", path]


def saved_over(name):
    return lambda tiny: ["--save-params", getattr(tiny, name)]


def log_as_product(tiny):
    return ["--log-file", tiny.folder / "own_i2d.fits"]


REPLACING = [
    *(mask_as_product, hard_link_to_the_mask, asn_as_record, asn_as_report, parameters_as_product),
    *(saved_over_what_is_read, saved_over("asn"), saved_over("mask"), log_as_product),
]


@pytest.mark.parametrize("prepare", REPLACING)
def test_no_input_is_replaced(prepare, tiny, capsys):
    rename(tiny, "own")
    options = prepare(tiny) or []
    tiny.out = tiny.folder
    before = tiny.sums()
    capsys.readouterr()
    assert tiny.command(*WORDS, *options) == 5
    assert re.search("would replace|holds something else", only_error(capsys.readouterr().err))
    after = tiny.sums()
    after.pop("own_i2d.fits" if prepare is log_as_product else "", None)  # it has the error
    assert after == before


def test_no_input_of_another_association_is_replaced(tiny, tmp_path, capsys):
    other = TinySet(tmp_path / "other")
    rename(other, "own")
    member = tiny.psf[0].rename(tiny.folder / "own_i2d.fits")
    tiny.edit_asn(lambda content: content["products"][0]["members"][2].update(expname=member.name))
    before = tiny.sums()
    words = [tiny.asn, other.asn, "--output-dir", tiny.folder, *WORDS]
    assert cli.main([str(word) for word in words]) == 2
    line = only_error(capsys.readouterr().err)
    assert f"would write {member}, an input of another association" in line
    assert tiny.sums() == before


@pytest.mark.parametrize("option", ["--report", "--save-params", "--log-file", "--output-dir"])
def test_outputs_that_cannot_be_written_are_found_before_any_work(option, tiny, tmp_path, capsys):
    (tmp_path / "file").touch()
    where = tmp_path / "file" / "r.html"
    assert tiny.command(*WORDS, option, where) == 5
    assert str(tmp_path / "file") in only_error(capsys.readouterr().err)
    assert tiny.files() == [] and not list(tiny.out.glob("*_run.json"))


@pytest.mark.parametrize("name", [f"{NAME}_i2d.fits", f"{NAME}_run.json", f"{NAME}_report.html"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_names_that_are_taken_are_found_before_any_work(make, name, tiny, capsys):
    tiny.out.mkdir()
    make(tiny.out / name)
    assert tiny.command(*WORDS, "--report", tiny.out) == 5
    assert f"{tiny.out / name}: is a" in only_error(capsys.readouterr().err)
    assert [p.name for p in tiny.out.iterdir()] == [name]


def test_names_that_are_too_long_are_found_before_any_work(tiny, capsys, monkeypatch):
    """On a file system that encrypts names, say."""
    monkeypatch.setattr("gpucoron.io.files.os.pathconf", lambda folder, name: 80)
    assert tiny.command("-q") == 5
    line = only_error(capsys.readouterr().err)
    assert re.search(r"cannot write \S+_\w+.fits: its name has \d\d bytes, expected at most", line)
    assert tiny.files() == []


@pytest.mark.parametrize("what", ["link", "dangling", "hard link", "text", "folder", "pipe"])
def test_a_lock_follows_and_replaces_nothing(what, tmp_path):
    lock, precious = tmp_path / ".a.lock", tmp_path / "precious"
    precious.write_text("precious")
    if what == "link":
        lock.symlink_to(precious)
    elif what == "dangling":
        lock.symlink_to(tmp_path / "nowhere")
    elif what == "hard link":
        lock.hardlink_to(precious)
    elif what == "text":
        shutil.copy(precious, lock)
    else:
        {"folder": os.mkdir, "pipe": os.mkfifo}[what](lock)
    with pytest.raises(OutputError, match=rf"cannot write {lock}: is no lock of an earlier run"):
        FolderLock(tmp_path, "a")
    assert precious.read_text() == "precious" and not (tmp_path / "nowhere").exists()
    assert what != "text" or lock.read_text() == "precious"


def test_a_lock_that_was_left_is_taken(tmp_path):
    for text in ("", "process 12 on elsewhere"):
        (tmp_path / ".a.lock").write_text(text)
        FolderLock(tmp_path, "a").release()
    assert not list(tmp_path.iterdir())


def test_a_limit_on_the_size_of_files_is_an_error_that_names_the_file(tiny, capsys):
    """As a quota of the disk is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        assert tiny.command(*WORDS) == 5
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"cannot write {tiny.out / NAME}_i2d.fits: File too large" in capsys.readouterr().err
    assert tiny.files() == []


def test_a_psfmask_is_read_before_any_work(tiny, capsys):
    """Before the first product, and by no thread that would wait."""
    os.mkfifo(tiny.folder / "pipe")
    assert tiny.command(*WORDS, "--psfmask", tiny.folder / "pipe") == 3
    assert "pipe: is a pipe, a device or the like" in only_error(capsys.readouterr().err)
    assert not tiny.out.exists()


# ---- the size of the combined image
@pytest.mark.parametrize(
    "setting", ["output_shape=50000,50000", "pixel_scale_ratio=0.002", "pixel_scale=0.0001"]
)
def test_an_output_image_that_no_memory_holds(setting, tiny, capsys, monkeypatch):
    monkeypatch.setattr("gpucoron.pipeline.run_options.memory", lambda: (2**34, 2**33))
    assert tiny.command(*WORDS, "--set", f"resample.{setting}") == 2
    line = only_error(capsys.readouterr().err)
    assert re.search(
        r"with an output image of \d+ x \d+ pixels needs about \d+ MiB, and|50000", line
    )
    assert not tiny.out.exists()


def test_the_output_image_counts_in_plan_and_limit(tiny, capsys):
    words = ["--set", "resample.output_shape=2000,3000", "--save", "i2d"]
    assert tiny.command(*words, "--dry-run", "--memory", "400MiB") == 0
    out, err = capsys.readouterr()
    found = dict(re.findall(r"^  (\S.*?)  +(\S.*)$", out, re.M))
    assert found["output image"] == "3000 x 2000 pixels"
    # SCI, ERR, DQ, WHT, five VAR_*, and one layer of CON
    assert found["disk to be written"] == f"{10 * 4 * 6e6 / 2**20:.0f} MiB"
    assert "a run would stop: " in err and "and 400 MiB are allowed" in err
    assert tiny.command("-q", *words, "--memory", "400MiB") == 2
    assert "and 400 MiB are allowed" in only_error(capsys.readouterr().err)
