"""The report in a real browser: offline, on a phone, blinking, on paper."""

import io
import re
import time

import numpy as np
import pytest
from matplotlib import image

import gpucoron
from gpucoron.simulate import simulate
from tests.report.browser import CHROMIUM, Browser

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium (Debian: apt install chromium)"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A run with all there is to show, several truncations and a warning among it."""
    folder = tmp_path_factory.mktemp("browser")
    made = simulate(
        folder / "in",
        seed=2,
        shape=(96, 96),
        n_science=2,
        n_integrations=3,
        n_references=4,
        n_reference_integrations=2,
    )
    result = gpucoron.run(
        made.asn, device="cpu", psfmask=made.psfmask, klip_truncate=(1, 3, 50), keep=()
    )
    assert result.warnings
    return result.report(folder)


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def page(browser, report):
    browser.requests.clear()
    browser.complaints.clear()
    browser.call("Emulation.setEmulatedMedia", media="")
    return browser


def test_nothing_is_asked_of_the_network_and_nothing_complains(page, report):
    page.open(report)
    page.js("new Promise(done => setTimeout(done, 300))")
    assert [url for url in page.requests if not url.startswith("data:")] == [report.as_uri()]
    assert page.complaints == []
    assert page.js("document.scripts.length") == 0


@pytest.mark.parametrize("width", [320, 390, 800, 1400])
def test_nothing_overflows(page, report, width):
    page.open(report, width)
    assert page.js("document.documentElement.scrollWidth") <= width
    outside = page.js(f"""
        [...document.querySelectorAll("body *")].filter(e => {{
          const box = e.getBoundingClientRect();
          return !e.closest(".scroll") && !e.matches(".pick, .blink")
            && box.width > 0 && (box.right > {width} + 0.5 || box.left < -0.5);
        }}).map(e => e.outerHTML.slice(0, 80))""")
    assert outside == []


@pytest.mark.parametrize("width", [390, 1100])
def test_figures_are_drawn_and_large_enough(page, report, width):
    page.open(report, width)
    sizes = page.js("""[...document.images].filter(i => i.offsetWidth).map(
        i => [i.complete && i.naturalWidth, i.offsetWidth, i.alt.length])""")
    assert len(sizes) > 10
    for natural, shown, alt in sizes:
        assert natural == 480 and alt > 10  # 5 inches, writing of 10 points
        assert shown >= 0.7 * natural


def test_the_blink(page, report):
    page.open(report)
    boxes = "[...document.querySelector('.pair').children].map(f => f.getBoundingClientRect().x)"
    side_by_side = page.js(boxes)
    assert side_by_side[0] < side_by_side[1]
    page.js("document.querySelector('input.blink').click()")
    on_top = page.js(boxes)
    assert on_top[0] == on_top[1]
    shown = "getComputedStyle(document.querySelector('.pair figure + figure')).visibility"
    seen = set()
    end = time.monotonic() + 10
    while len(seen) < 2 and time.monotonic() < end:
        seen.add(page.js(shown))
        time.sleep(0.1)
    assert seen == {"visible", "hidden"}


def test_the_blink_shows_two_images(page, report):
    page.open(report)
    page.js(
        "document.querySelector('input.blink').click();"
        "document.querySelector('.pair').scrollIntoView()"
    )
    shots, end = [], time.monotonic() + 10
    while time.monotonic() < end:
        shots.append(image.imread(io.BytesIO(page.screenshot(whole=False)), format="png"))
        if any(np.abs(shots[0] - s).mean() > 0.02 for s in shots):
            return
        time.sleep(0.3)
    pytest.fail("all looks alike")


def test_truncations_are_chosen(page, report):
    page.open(report)
    shown = "[...document.querySelectorAll('.choice > .of')].map(e => e.offsetHeight > 0)"
    assert page.js(shown) == [False, False, True]
    page.js("document.querySelector('label[for=i2d1]').click()")
    assert page.js(shown) == [True, False, False]


def test_pictures_have_colours(page, report):
    page.open(report, 800)
    page.js("document.images[0].scrollIntoView()")
    shot = image.imread(io.BytesIO(page.screenshot(whole=False)), format="png")[..., :3]
    colours = np.unique((255 * shot).astype(int).reshape(-1, 3), axis=0)
    assert len(colours) > 300


def test_paper(page, report):
    page.open(report)
    page.js("document.querySelector('input.blink').click()")
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF") and b"%%EOF" in pdf[-20:]
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20
    page.open(report, 700)
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.js("document.documentElement.scrollWidth") <= 700
    assert page.js("[...document.querySelectorAll('.choice > .of')].every(e => e.offsetHeight)")
    assert page.js("getComputedStyle(document.querySelector('nav')).display") == "none"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_text(page, report, scheme):
    page.call(
        "Emulation.setEmulatedMedia",
        media="screen",
        features=[{"name": "prefers-color-scheme", "value": scheme}],
    )
    page.open(report)
    colours = page.js("""(() => {
        const style = getComputedStyle(document.documentElement);
        return Object.fromEntries(["paper", "ink", "soft", "c0", "c1"]
          .map(name => [name, style.getPropertyValue("--" + name).trim()]));
    })()""")

    def luminance(colour):
        digits = colour.lstrip("#")
        digits = digits if len(digits) == 6 else "".join(2 * d for d in digits)
        linear = [
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
            for c in (int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4))
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    paper = luminance(colours["paper"])
    for name, least in (("ink", 7), ("soft", 4.5), ("c0", 3), ("c1", 3)):
        other = luminance(colours[name])
        ratio = (max(paper, other) + 0.05) / (min(paper, other) + 0.05)
        assert ratio >= least, (name, ratio)
