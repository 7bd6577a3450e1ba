"""The report in a real browser: offline, on a phone, blinking, on paper."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

import gpucoron
from gpucoron.simulate import simulate
from tests.report.conftest import ROLLS

BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
LOOK = Path(__file__).with_name("look.html")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium (Debian: apt install chromium)"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A run with all there is to show, several truncations and a warning among it."""
    folder = tmp_path_factory.mktemp("browser")
    sizes = {"shape": (96, 96), "n_integrations": 3, "n_references": 4}
    made = simulate(folder / "in", seed=2, **sizes, **ROLLS)
    options = {"device": "cpu", "klip_truncate": (1, 3, 50), "keep": ()}
    result = gpucoron.run(made.asn, psfmask=made.psfmask, **options)
    assert result.warnings
    return result.report(folder)


def chromium(*words):
    """Run Chromium without a window; return what it writes and what it complains of."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    done = subprocess.run([CHROMIUM, *flags, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def seen(report):
    """What a page finds that has the report in a frame."""
    flags = "--disable-web-security --allow-file-access-from-files --enable-logging=stderr"
    flags += " --virtual-time-budget=60000 --dump-dom"
    profile = f"--user-data-dir={report.with_name('profile')}"
    out, complaints = chromium(*flags.split(), profile, f"{LOOK.as_uri()}#{report.as_uri()}")
    assert "CONSOLE" not in complaints, complaints
    return json.loads(html.unescape(re.search("<pre>(.*?)</pre>", out)[1]))


def test_nothing_is_asked_of_the_network_and_no_script_runs(seen):
    assert [url for url in seen["requests"] if not url.startswith("data:")] == []
    assert seen["scripts"] == 0


def test_figures_are_drawn(seen):
    assert len(seen["images"]) > 10 and seen["colours"] > 300
    for complete, width, alt in seen["images"]:
        assert complete and width == 480 and len(alt) > 10  # 5 inches, writing of 10 points


def test_nothing_overflows_and_figures_are_large_enough(seen):
    for width, total, outside, narrowest in seen["widths"]:
        assert total <= width and outside == []
        assert narrowest >= (0.6 if width < 390 else 0.7) * 480


def test_no_table_is_cut_on_a_wide_screen(seen):
    assert len(seen["tables"]) >= 4
    assert all(content <= room for content, room in seen["tables"])


def test_links_lead_to_cut_outs_sections_and_files(seen, report):
    inside = {link[1:] for link in seen["links"] if link.startswith("#")}
    assert inside <= set(seen["ids"])
    numbers = [f"candidate{k}" for k in range(1, len(seen["cuts"]) + 1)]
    assert numbers and set(numbers) <= inside
    assert all(complete and 100 < width < 300 for complete, width in seen["cuts"])
    files = [report.parent / unquote(link) for link in seen["links"] if not link.startswith("#")]
    assert len([file for file in files if file.suffix == ".fits"]) == 6
    assert all(file.is_file() for file in files)


def test_the_blink(seen):
    beside, over = seen["pair"]
    assert beside[0] < beside[1] and over[0] == over[1]
    assert seen["blink"] == ["visible", "hidden"]


def test_truncations_are_chosen(seen):
    assert seen["chosen"] == [[False, False, True], [True, False, False]]


def test_paper(seen, report):
    width, shown, nav = seen["print"]
    assert width <= 700 and shown == [True] * 3 and nav == "none"
    paper = report.with_suffix(".pdf")
    chromium(f"--print-to-pdf={paper}", report.as_uri())
    pdf = paper.read_bytes()
    assert pdf.startswith(b"%PDF") and b"%%EOF" in pdf[-20:]
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_text(seen, scheme):
    def luminance(colour):
        digits = colour.lstrip("#")
        digits = digits if len(digits) == 6 else "".join(2 * d for d in digits)
        linear = [
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
            for c in (int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4))
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    paper, *others = map(luminance, seen[scheme].values())
    for other, least in zip(others, (7, 4.5, 3, 3), strict=True):
        assert (max(paper, other) + 0.05) / (min(paper, other) + 0.05) >= least
