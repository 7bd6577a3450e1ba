"""Runs of associations: several products, warnings, progress."""

from tests.helpers.tiny_sets import (
    N_SCIENCE,
    NAME,
    one_thread,  # noqa: F401
)
from tests.pipeline.test_pipeline import run, suffixes


def test_several_products_and_one_without_a_name(tiny):
    tiny.split("mine", None)
    result = run(tiny, output_dir=tiny.out)
    assert [p.name for p in result.products] == ["mine", NAME]
    assert result.product is result.products[0]
    assert [len(next(iter(p.psfsub.values()))) for p in result.products] == list(N_SCIENCE)
    text = f"{tiny.asn.name}: product 2 has no name; using the standard one, {NAME}"
    assert result.warnings == (text,)
    expected = {f"{a}_{kind}.fits" for a in ("mine", NAME) for kind in ("i2d", "psfstack")}
    assert expected < set(tiny.files())
    # references shared by both are written for each, under one name, the same but for its date
    assert suffixes(result)["i2d"] == 2 and len(tiny.files()) == len(set(result.files))


def test_warnings_are_collected_once(tiny):
    def change(content):
        content["products"][0]["members"].append({"expname": "b.fits", "exptype": "background"})

    tiny.edit_asn(change)
    for name in ("VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"):
        tiny.edit(**{name: None})
    results = [run(tiny, klip_truncate=20) for _ in range(2)]
    assert results[0].warnings == results[1].warnings and len(results[0].warnings) == 3
    for text in ("ignoring b.fits (background)", "klip.truncate is 20", "without VAR_RNOISE"):
        assert sum(text in w for w in results[0].warnings) == 1


def test_progress_goes_forward(tiny):
    events = []
    run(tiny, progress=lambda step, done, total, text: events.append((step, done, total, text)))
    steps = list(dict.fromkeys(step for step, *_ in events))
    assert steps[0] == "read" and steps[-1] == "resample"
    for step in steps:
        rounds, last = 0, None
        for _, done, total, text in (e for e in events if e[0] == step):
            assert 1 <= done <= total and text
            assert last is None or done == last[0] + 1 or (done == 1 and last[0] == last[1])
            rounds += done == total
            last = done, total
        assert rounds >= 1 and last[0] == last[1]
