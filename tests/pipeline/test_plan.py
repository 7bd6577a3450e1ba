"""What a run will take: by hand, by --dry-run, and by measuring a run; and runs in less memory."""

import re
import sys

import numpy as np
import pytest

import gpucoron
from gpucoron.api import PRODUCTS
from gpucoron.backend.device import cpu_threads
from gpucoron.cli import main as cli
from gpucoron.core.parameters import Parameters
from gpucoron.errors import UsageError
from gpucoron.pipeline.association import plan_association
from gpucoron.pipeline.planning import BASE, LARGEST_BATCH, MIB, make_plan, predict
from gpucoron.pipeline.run_options import RunOptions, parse_size
from gpucoron.simulate import simulate
from tests.helpers.processes import python
from tests.helpers.tiny_sets import (
    N_REFERENCES,
    N_SCIENCE,
    NAME,
    NOTHING_ELSE,
    SHAPE,
    TinySet,
    one_thread,  # noqa: F401
)

DEFAULT = frozenset({"crfints", "psfstack", "psfalign", "psfsub", "i2d"})
NPIX, N_REF, N_SCI = SHAPE[0] * SHAPE[1], sum(N_REFERENCES), sum(N_SCIENCE)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A set that is only read."""
    return TinySet(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def medium(tmp_path_factory):
    numbers = {"n_science": 2, "n_integrations": 6, "n_references": 6}
    more = {"shape": (200, 200), "n_reference_integrations": 4, **NOTHING_ELSE}
    return simulate(tmp_path_factory.mktemp("medium"), "nircam", 5, **numbers, **more)


def tiny_plan(save=DEFAULT, keep=(), budget=None, threads=1, stacks=None, **keywords):
    science, references = stacks or ([(n, *SHAPE) for n in k] for k in (N_SCIENCE, N_REFERENCES))
    parameters = Parameters.from_sources(keywords=keywords)
    limits = {"budget": budget, "threads": threads}
    return make_plan("a", science, references, parameters, save, keep, **limits)


def test_the_forward_model_takes_memory():
    """KL vectors and weights of every exposure; more while contrast is measured."""
    from types import SimpleNamespace

    stacks = [(10, 320, 320)] * 2, [(4, 320, 320)] * 9
    output = SimpleNamespace(shape=(330, 330), pixel_scale_ratio=1.0)

    def plan(**options):
        return make_plan("a", *stacks, Parameters(), (), ("i2d",), output=output, **options).memory

    plain, kept, injected = (
        plan(),
        plan(forward=True),
        plan(forward=True, contrast=True),
    )
    vectors = 2 * 320 * 320 * (8 * 32 + 4 * 10)
    assert vectors < kept - plain < vectors + 200 * MIB  # a run of this set took 135 MiB of 770
    assert injected - kept > 400 * MIB  # 470 found
    skipped = Parameters.from_sources(keywords={"klip_skip": True})
    both = (
        make_plan("a", *stacks, skipped, (), ("i2d",), output=output, forward=f).memory
        for f in (False, True)
    )
    assert len(set(both)) == 1


@pytest.mark.parametrize(
    "text, size",
    [
        *((12345, 12345), ("12345", 12345), ("4GiB", 4 * 2**30), ("500 MB", 500_000_000)),
        *(("1.5g", 1_500_000_000), ("2TiB", 2 * 2**40), ("64ki", 65536)),
        *(("1e3 kB", 1_000_000), (" 3 mib ", 3 * MIB)),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "much", "-1GiB", "0", 0, -5, "4GiBs", "4 giga", "1.2.3M", "nan", None]
)
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="memory is .*, expected a size such as 4GiB or 500MB"):
        parse_size(text)


# ---- numbers
@pytest.mark.parametrize(
    "keywords, pairs",
    [
        ({}, N_SCI * N_REF),
        ({"align": "each"}, N_SCI * N_REF),
        ({"align": "first"}, len(N_SCIENCE) * N_REF),
        ({"align_refs_skip": True}, len(N_SCIENCE) * N_REF),
        ({"klip_skip": True}, 0),
    ],
)
def test_pairs(keywords, pairs):
    plan = tiny_plan(**keywords)
    assert plan.pairs == pairs and plan.references == N_REF
    assert plan.integrations == N_SCIENCE and plan.shape == SHAPE
    assert plan.seconds > 0


def test_pairs_of_a_joint_registration_are_few():
    stacks = [(60, 320, 320)] * 2, [(20, 320, 320)] * 9
    assert tiny_plan(stacks=stacks).pairs == 2 * 4 * (180 + 56)
    assert tiny_plan(stacks=stacks, align="each").pairs == 2 * 60 * 180


def test_more_work_takes_longer():
    many, once = tiny_plan(), tiny_plan(align="first")
    assert many.disk > once.disk
    stacks = [(60, 320, 320)] * 2, [(20, 320, 320)] * 9
    each, joint, first = (
        tiny_plan({"i2d"}, stacks=stacks, align=align).seconds
        for align in ("each", "joint", "first")
    )
    assert each > 3 * joint > 3 * first


def test_threads_beyond_two_are_worth_less(monkeypatch):
    monkeypatch.setattr("gpucoron.pipeline.planning._speed", lambda: 1.0)
    stacks = [(60, 320, 320)], [(20, 320, 320)] * 9
    plans = (tiny_plan({"i2d"}, threads=n, stacks=stacks) for n in (1, 2, 16))
    one, two, many = (plan.seconds - 0.5 for plan in plans)
    assert one == pytest.approx(2 * two)
    assert two / 3 < many < two / 2


def test_what_was_measured_is_predicted(monkeypatch):
    """Seconds of whole processes: bench/README.md, and the first results on a GPU there."""
    saved = {"crfints", "psfstack", "psfsub", "i2d"}

    def times(integrations, references, speed, threads):
        monkeypatch.setattr("gpucoron.pipeline.planning._speed", lambda: speed)
        stacks = [(integrations, 320, 320)] * 2, [(references, 320, 320)] * 9
        return predict([tiny_plan(saved, threads=threads, stacks=stacks, align="each")])

    assert times(10, 4, 1.0, 2) == pytest.approx((2.97, 3.1), rel=0.05)
    assert times(60, 20, 1.0, 2) == pytest.approx((4.40, 37), rel=0.1)
    assert times(60, 20, 1.9, 16) == pytest.approx((4.40, 27.4), rel=0.1)  # slower processors
    on_gpu, on_cpu = times(1, 1, 1.0, 2)
    assert on_cpu < on_gpu


def test_memory_grows_with_what_is_written_and_kept():
    def peak(save, keep=(), **keywords):
        stacks = [(2, 50, 60)] * 2, [(4, 50, 60)] * 9
        return tiny_plan(save, keep, stacks=stacks, **keywords).memory

    plain = peak({"psfsub"})
    assert BASE < plain < peak({"psfsub", "psfalign"})
    assert peak({"psfsub"}, {"psfalign"}) >= plain + 16 * 50 * 60 * 36 * 4
    several = [peak(DEFAULT, klip_truncate=k) for k in (2, (1, 2), (1, 2, 3))]
    assert several == sorted(set(several))


@pytest.mark.parametrize("batch", [1, 2, N_REF])
def test_the_budget_decides_the_batch(batch):
    least = tiny_plan().least_memory
    one_more = tiny_plan(budget=least + 32 * NPIX).memory - least
    plan = tiny_plan(budget=least + (batch - 1) * one_more)
    assert plan.batch == batch and plan.least_memory == least
    assert plan.memory == least + (batch - 1) * one_more
    assert tiny_plan(budget=1).batch == 1 and tiny_plan(budget=1).memory == least
    large = [(2, 8, 8)], [(100, 8, 8)]  # batches do not grow for ever
    assert tiny_plan(budget=2**40, stacks=large).batch == LARGEST_BATCH


@pytest.mark.parametrize(
    "keywords",
    [{}, {"align": "first"}, {"klip_truncate": (1, 2)}]
    + [{f"{step}_skip": True} for step in ("resample", "outlier_detection", "align_refs", "klip")],
)
@pytest.mark.slow
def test_what_is_written_is_as_large_as_was_said(keywords, tiny, tmp_path):
    options = {"klip_truncate": 3} | keywords
    (plan,) = gpucoron.plan(tiny.asn, **options)
    result = gpucoron.run(tiny.asn, "cpu", tmp_path, psfmask=tiny.mask, **options)
    # headers, tables and WCS come on top, some dozen kB a file
    extra = sum(f.stat().st_size for f in result.files) - plan.disk
    assert 0 < extra < 150_000 * len(result.files)
    assert plan.name == result.product.name
    assert plan.pairs >= sum(map(len, result.product.fits.values()))
    if "align_refs_skip" not in keywords:
        assert plan.pairs == sum(map(len, result.product.fits.values()))


def test_a_plan_for_each_product(tmp_path):
    tiny = TinySet(tmp_path)
    tiny.split("a", "b")
    plans = gpucoron.plan(tiny.asn)
    assert [(p.name, p.integrations) for p in plans] == [("a", N_SCIENCE[:1]), ("b", N_SCIENCE[1:])]


# ---- --dry-run and --memory
def test_dry_run_tells_and_writes_nothing(tiny, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = tiny.sums()
    assert cli.main([str(tiny.asn), "--dry-run", "--memory", "1GiB"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = dict(re.findall(r"^  (\S.*?)  +(\S.*)$", out, re.M))
    plan = tiny_plan(budget=2**30)
    assert out.startswith(f"product {NAME}\n")
    assert re.fullmatch(r"\d+\.\d s, without reading and writing", found.pop("expected time"))
    expected = {
        "science integrations": "3 + 2",
        "reference images": "5, 36 x 40 pixels",
        "pairs to fit": "25",
        "batches": "5 references at a time",
        "peak memory": f"{plan.memory / MIB:.0f} MiB",
        "disk to be written": f"{plan.disk / MIB:.0f} MiB",
    }
    assert expected.items() <= found.items() and plan.pairs == 25
    assert not list(tmp_path.iterdir()) and tiny.sums() == before


def test_dry_run_writes_parameters_that_it_is_asked_for(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--dry-run", "-q", "--set", "klip.truncate=4", "--save-params", "used.toml"]
    assert cli.main([str(tiny.asn), str(tiny.asn), *words]) == 0
    assert capsys.readouterr().out.count("pairs to fit") == 2
    assert Parameters.from_sources(["used.toml"]).klip.truncate == 4


def test_dry_run_follows_the_options_and_finds_what_is_wrong(tmp_path, capsys):
    tiny = TinySet(tmp_path)

    def dry_run(*words):
        return cli.main([str(tiny.asn), "--dry-run", *words]), "".join(capsys.readouterr())

    code, text = dry_run("--align", "first")
    assert code == 0 and "pairs to fit          10\n" in text and "on the CPU" not in text
    code, text = dry_run("--device", "0")
    assert code == 0 and "are those of a run on the CPU" in text
    assert dry_run("--set", "klip.truncate=x")[0] == 2
    code, text = dry_run("--memory", "lots")
    assert code == 2 and "memory is 'lots', expected a size" in text
    tiny.edit(tiny.psf[1], FILTER="F335M")
    code, text = dry_run()
    assert code == 3 and f"{tiny.psf[1].name}: FILTER is F335M" in text


def test_too_little_memory_is_an_error_that_names_the_least(tiny, capsys, tmp_path):
    def command(size):
        words = f"-q --memory {size} --device cpu --set klip.truncate=3 --output-dir".split()
        return cli.main([str(tiny.asn), *words, str(tmp_path)])

    assert command("10MB") == 2
    line = rf"gpucoron: error: {NAME}: needs about (\d+) MiB, and 9 MiB are allowed; "
    found = re.fullmatch(line + r"give --memory (\d+MiB) or more\n", capsys.readouterr().err)
    assert found and not list(tmp_path.glob("*.fits"))
    assert command(found[2]) == 0 and len(list(tmp_path.glob("*.fits"))) == 11


def test_little_free_memory_is_a_warning_and_too_little_an_error(tiny, monkeypatch):
    """The error tells what lets the run try all the same."""

    def run(free, **options):
        monkeypatch.setattr("gpucoron.pipeline.run_options.memory", lambda: (2**34, free))
        return gpucoron.run(tiny.asn, "cpu", psfmask=tiny.mask, klip_truncate=3, **options)

    with pytest.raises(UsageError, match=r"needs about \d+ MiB, and 16 MiB are free; ") as error:
        run(2**24)
    needs, least = re.findall(r"(\d+) ?MiB", str(error.value))[::2]
    assert not run(2**24, memory=f"{least}MiB").warnings
    (text,) = run((int(needs) + 2) * 2**20).warnings
    allowed = rf"and {int(needs) // 2 + 1} MiB are allowed by default \(half of what is free\); "
    assert re.search(rf"needs about {needs} MiB, {allowed}going on$", text)


# ---- the same result whatever the memory
@pytest.mark.parametrize("align", ["joint", "each", "first"])
@pytest.mark.slow
def test_batches_change_no_bit(align, tiny, caplog):
    caplog.set_level("DEBUG", "gpucoron")
    parameters = Parameters.from_sources(keywords={"align": align, "klip_truncate": 3})
    keeping = RunOptions(
        tiny.asn,
        parameters,
        save=frozenset(),
        keep=frozenset(PRODUCTS),
        threads=1,
        forward_model=True,
    )
    least = plan_association(keeping)[0].least_memory
    given = {"psfmask": tiny.mask, "align": align, "klip_truncate": 3, "threads": 1}
    results = [
        gpucoron.run(tiny.asn, "cpu", memory=least + more, **given).product
        for more in (0, 32 * NPIX, 2**30)
    ]
    assert re.findall(r"(\d) references at a time", caplog.text) == ["1", "2", "5"]
    for other in results[1:]:
        same(results[0], other)


def same(first, second):
    """Assert that everything in two products is the same to the bit."""

    def stacks(product):
        yield product.i2d
        yield from (*product.psfsub.values(), *product.psfalign.values())

    for one, other in zip(stacks(first), stacks(second), strict=True):
        np.testing.assert_array_equal(one.data, other.data)
        np.testing.assert_array_equal(one.err, other.err)
    for root, table in first.fits.items():
        np.testing.assert_array_equal(table, second.fits[root])


@pytest.mark.parametrize("align", ["each", "first"])
@pytest.mark.slow
def test_threads_change_no_bit(align, medium):
    """On images large enough for several blocks of pixels."""
    several = min(3, cpu_threads())
    given = {"psfmask": medium.psfmask, "align": align, "klip_truncate": 7}
    same(*(gpucoron.run(medium.asn, "cpu", threads=n, **given).product for n in (1, several)))


# ---- against a measurement
MEASURE = """
import re, sys
from pathlib import Path
from gpucoron.cli.main import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "options",
    ["", "--no-save psfalign --set klip.truncate=3,6,9,12", "--align first"]
    + ["--set resample.kernel=lanczos3 --set resample.pixel_scale_ratio=0.4"],
)
@pytest.mark.slow
def test_peak_memory_is_as_predicted(options, medium, tmp_path, capsys):
    words = [str(medium.asn), "--psfmask", str(medium.psfmask), "--output-dir", str(tmp_path)]
    words += [*"--device cpu -q --set klip.truncate=20".split(), *options.split()]
    done = python("-c", MEASURE, *words)
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.split()[-1]) / 1024
    assert cli.main([*words, "--dry-run"]) == 0
    predicted = float(re.search(r"peak memory +(\d+) MiB", capsys.readouterr().out)[1])
    # 0.202 found once: lanczos3 at 0.4 of the pixel's side needs 560 to 610 MiB, predicted are 486
    assert predicted == pytest.approx(measured, rel=0.25)
