"""What the pages and README show: links, commands, modules, code."""

import importlib
import json
import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from gpucoron.backend import device
from gpucoron.cli import main as cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "bench" / "README.md"]
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(?:#[^)\s]*)?\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MISSING_FILE, NO_DEVICE, CANNOT_WRITE, NO_PEER = 3, 4, 5, 6


def blocks(page, *languages):
    """Return the fenced blocks of a page that are in one of some languages."""
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def commands():
    """Yield the words of every ``gpucoron`` command in a block of the pages for beginners."""
    for name in ("docs/quickstart.md", "docs/howto.md", "docs/coming_from.md", "README.md"):
        for block in blocks(ROOT / name, "", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.removeprefix("$ ").startswith("gpucoron "):
                    words = shlex.split(line.removeprefix("$ "), comments=True)[1:]
                    if words[0] != "demo":  # which is run by other tests
                        yield pytest.param(words, id=" ".join(words)[:60])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    links = LINK.findall(page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_has_no_relative_links_where_packages_are_shown():
    hook = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]
    text = (ROOT / "README.md").read_text()
    assert LINK.search(text)
    for rule in hook["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert not LINK.search(text) and "![" not in text and "](" not in text
    assert "docs/deviations.md" in text


def test_timings_of_readme_are_those_of_the_results_that_it_names():
    section = (ROOT / "README.md").read_text().partition("## In numbers")[2].partition("\n## ")[0]
    files = re.findall(r"\((bench/results/[^)]+)\)", section)
    canonical, gpu, peers = (json.loads((ROOT / file).read_text()) for file in files)
    rows = [row.split("|")[1:-1] for row in section.splitlines() if row.endswith(" s |")]
    of_peers = [[cell.strip() for cell in row] for row in rows if len(row) > 2]
    rows = [row[1].strip() for row in rows if len(row) == 2]
    measured = ("jwst, first", "first", *(f"joint, psfalign {w}written" for w in ("not ", "")))
    measured += ("each, psfalign not written",)
    assert rows == [f"{canonical[name]['median_s']:.1f} s" for name in measured]
    rdi, zones = peers["RDI"], peers["ADI+RDI, zones"]
    jwst = rdi["jwst, subtraction alone"]["median_s"]
    assert of_peers[0][1] == f"{jwst:.1f} s, subtraction alone"
    assert of_peers[0][3:5] == [f"{rdi[name]['median_s']:.1f} s" for name in ("pyKLIP", "VIP")]
    assert of_peers[1][3] == f"{zones['pyKLIP']['median_s']:.1f} s"
    assert [row[5] for row in of_peers] == [
        f"{w['gpucoron']['median_s']:.2f} s" for w in (rdi, zones)
    ]
    for kind in ("gpu", "cpu"):
        assert f"{gpu['large'][kind]['process']['median_s']:.1f} s" in section


@pytest.fixture
def no_gpu(monkeypatch):
    """Have no GPU here, also where an earlier test has loaded CuPy; forget it afterwards."""
    monkeypatch.setattr(device, "_may_have_gpu", lambda: False)
    device.find_gpus.cache_clear()
    yield
    device.find_gpus.cache_clear()


@pytest.mark.parametrize("words", list(commands()))
def test_commands_are_understood(words, no_gpu, tmp_path, monkeypatch, capsys):
    """Nothing is there that they could work on, so a command that is right says that."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sim").touch()  # where simulate wants a folder
    if "--scheduler" in words:  # there is none to wait for
        at = words.index("--scheduler")
        words = words[:at] + words[at + 2 :]
    expected = MISSING_FILE
    if words[0] == "simulate":
        expected = CANNOT_WRITE
    elif words[0] == "compile" or "--device" in words:
        expected = NO_DEVICE
    elif words[0] == "verify" and find_spec("jwst") is None:
        expected = NO_PEER
    if words == ["--help"]:
        expected = 0
    assert cli.main(words) == expected, capsys.readouterr().err


def test_the_reference_lists_modules_with_docstrings():
    names = re.findall(r"^   (gpucoron[\w.]*)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert all(importlib.import_module(name).__doc__ for name in names)
    table = re.findall(r"^\| `(gpucoron\.[\w.]+)` \|", (DOCS / "library.md").read_text(), re.M)
    assert table and set(table) <= set(names)


def test_klip_of_arrays_is_principal_components_without_the_means():
    """The blocks of coming_from.md; VIP's spat-mean and pyKLIP's KLIP are this formula."""
    random = np.random.default_rng(3)
    references, images = random.normal(size=(12, 20, 24)), random.normal(size=(2, 20, 24))
    names = {"references": references, "images": images}
    code = [b for b in blocks(DOCS / "coming_from.md", "python") if "KLBasis(references)" in b]
    assert len(code) == 2
    for text in code:
        exec(compile(text[text.index("from gpucoron.ops") :], "coming_from.md", "exec"), names)
    flat, targets = (a.reshape(len(a), -1) for a in (references, images))
    flat, targets = (a - a.mean(1, keepdims=True) for a in (flat, targets))
    modes = np.linalg.svd(flat, full_matrices=False)[2]
    for truncate, found in ((1, names["one"]), (5, names["five"]), (10, names["residuals"])):
        model = targets @ modes[:truncate].T @ modes[:truncate]
        np.testing.assert_allclose(found.reshape(2, -1), targets - model, atol=1e-11)
