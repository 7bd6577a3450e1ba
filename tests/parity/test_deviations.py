"""docs/deviations.md says what the comparison lets pass, word for word."""

from pathlib import Path

from gpucoron.verify.headers import EXPECTED_EXTENSIONS, EXPECTED_KEYWORDS

PAGE = Path(__file__).parents[2] / "docs" / "deviations.md"


def rows(heading):
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def shown(within):
    words = {None: "any difference", "polygon": "the same polygon"}
    return words[within] if within in words else f"{within:g}"


def test_keywords():
    expected = [
        (r.products, r.hdu, r.keyword, shown(r.within), r.reason) for r in EXPECTED_KEYWORDS
    ]
    assert rows("Header keywords") == expected


def test_extensions():
    assert rows("Extensions") == list(EXPECTED_EXTENSIONS)
