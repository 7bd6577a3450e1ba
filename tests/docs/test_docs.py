"""The picture of the packages in docs/architecture.md is the code's."""

import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
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
