"""docs/architecture.md: its picture is the code's, and what it names is there."""

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
ROOT = DOCS.parent
PACKAGE = ROOT / "gpucoron"
sys.path.append(str(DOCS))

import draw_packages  # noqa: E402


def test_the_picture_of_the_packages_is_the_codes():
    page = draw_packages.PAGE.read_text()
    assert draw_packages.drawn(page) == page, "run python docs/draw_packages.py"


def test_arrows_that_follow_from_others_are_left_out():
    imports = {"a": {"b", "c"}, "b": {"c", "d"}, "c": {"d"}, "d": set()}
    assert draw_packages.reduced(imports) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}


def test_the_picture_has_what_pyproject_does_not_except():
    imports = draw_packages.imports()
    assert "gpucoron.ops" in imports["gpucoron.steps"]
    assert "gpucoron.io" not in imports["gpucoron.core"]


# ---- the table of folders
PAGE = draw_packages.PAGE.read_text()
ROWS = [
    (folder, re.findall(r"`([^`]+)`", row.rpartition(" | ")[2]))
    for folder, row in re.findall(r"^\| `([a-z]+)/` \| (.*) \|$", PAGE, re.MULTILINE)
]
FOLDERS = {
    folder: ROOT if folder == "gpucoron" or not (ROOT / "gpucoron" / folder).is_dir() else PACKAGE
    for folder, _ in ROWS
}


def test_every_folder_of_the_package_has_a_row():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages | {"gpucoron", "kernels", "tests", "bench"} == FOLDERS.keys()
    assert len(ROWS) == len(FOLDERS)


@pytest.mark.parametrize("folder, names", ROWS, ids=[folder for folder, _ in ROWS])
def test_what_the_rows_name_is_there(folder, names):
    assert names or folder == "kernels"
    assert [n for n in names if not (FOLDERS[folder] / folder / n).exists()] == []


def test_files_that_the_page_names_are_there():
    """But those of an op `x`, a kernel `x` and a step `s`, which are to be added."""
    paths = [p for p in re.findall(r"`([\w./]+/[\w.]+)`", PAGE) if Path(p).stem not in ("s", "x")]
    named = [p for p in paths if not p.endswith(("test_x.py", "bench_x.py", "test_s.py"))]
    assert len(named) > 5
    assert [p for p in named if not any((at / p).exists() for at in (ROOT, PACKAGE))] == []
