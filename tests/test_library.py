"""The library as others see it: light to import, typed, and at home without files."""

import importlib
import inspect
import pickle
import pkgutil

import numpy as np
import pytest

import gpucoron
from gpucoron import api, errors
from gpucoron.core.parameters import SECTIONS, SHORT
from gpucoron.core.stack import IntegrationStack
from gpucoron.core.step_keywords import StepKeywords
from gpucoron.errors import GpucoronError
from tests.helpers.processes import python
from tests.helpers.scenes import gaussian, read_only, speckles

HEAVY = (
    "numpy scipy numba astropy asdf gwcs stdatamodels rich cupy crds jwst matplotlib jinja2 "
    "pandas gpucoron.api gpucoron.steps"
).split()


def modules_after(code):
    """Return which heavy modules a fresh interpreter has loaded after some code."""
    code += f"\nimport sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = python("-c", code)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.splitlines()[-1].split()


# ---- importing
def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import gpucoron; gpucoron.__version__; dir(gpucoron); gpucoron.ExposureError; "
        "gpucoron.IntegrationStack; gpucoron.simulate; import gpucoron.io; gpucoron.Parameters(); "
        "from gpucoron.cli.main import main; main(['--help'])"
    )
    assert modules_after(code) == []


def test_steps_load_no_files_code():
    loaded = modules_after("import gpucoron; gpucoron.steps.klip; gpucoron.steps.resample")
    assert not {"astropy", "asdf", "gwcs", "stdatamodels", "crds", "jwst"} & set(loaded)


def test_public_names_are_there():
    for name in "outlier_detection stack_refs align_refs klip resample".split():
        assert inspect.isfunction(getattr(gpucoron.steps, name)), name
    for name in gpucoron.__all__:
        assert getattr(gpucoron, name) is not None
    assert set(gpucoron.__all__) <= set(dir(gpucoron))
    with pytest.raises(AttributeError, match="gpucoron.*rnu"):
        gpucoron.rnu
    assert isinstance(gpucoron.__version__, str)


def test_no_module_hides_a_public_name():
    """Importing a submodule puts its name into the package."""
    for module in pkgutil.iter_modules(gpucoron.__path__, "gpucoron."):
        importlib.import_module(module.name)
    assert inspect.isfunction(gpucoron.run) and inspect.isfunction(gpucoron.plan)
    modules = {m.name for m in pkgutil.iter_modules(gpucoron.__path__)}
    assert modules & set(gpucoron.__all__) <= {"io", "ops", "simulate", "steps"}


# ---- the call
def test_signature_of_run():
    parameters = inspect.signature(gpucoron.run).parameters
    assert list(parameters)[:4] == ["asn", "device", "output_dir", "align"]
    assert (parameters["device"].default, parameters["output_dir"].default) == ("auto", None)
    assert set("psfmask preset save keep overwrite progress threads memory".split()) <= set(
        parameters
    )
    assert list(parameters.values())[-1].kind is inspect.Parameter.VAR_KEYWORD
    assert api.PRODUCTS == tuple("crfints median psfstack psfalign psfsub i2d".split())


def test_keywords_of_run_are_the_parameters():
    """The names that type checkers know and those that are accepted."""
    known = set(StepKeywords.__annotations__)
    flat = {name.replace(".", "_") for name in gpucoron.Parameters().flat()}
    named = set(inspect.signature(gpucoron.run).parameters)
    assert known == flat | SECTIONS.keys() | (SHORT.keys() - named)
    own = {"klip_truncate": 4, "star": (3.0, 5.0), "steps": {"klip": {"skip": True}}}
    for call in (gpucoron.run, gpucoron.plan):
        with pytest.raises(gpucoron.UsageError, match="not both"):
            call("asn.json", parameters=gpucoron.Parameters(), **own)
    for words, name in (({"steps": {"klip": {"truncat": 4}}}, "klip.truncate"), ({}, "level-3")):
        with pytest.raises(gpucoron.GpucoronError, match=name):
            gpucoron.plan("asn.json", **words)


@pytest.mark.parametrize("module", ["", ".io", ".ops", ".simulate", ".steps"])
def test_completion_lists_public_names_only(module):
    found = importlib.import_module(f"gpucoron{module}")
    assert {name for name in dir(found) if not name.startswith("_")} <= {*found.__all__, "io"}
    assert all(getattr(found, name) is not None for name in dir(found))


# ---- what results look like
def test_stacks_are_compared_and_shown_without_their_pixels():
    stack = make_stack(3, 1)
    same, other = stack.replace(data=stack.data.copy()), stack.replace(err=stack.err + 1)
    assert stack == same and stack != other and stack != "stack" and not stack == None  # noqa: E711
    assert stack != stack.replace(data=stack.data.astype(np.float64))
    table = np.zeros(3, [("x", "f4"), ("name", "U5")])
    table["x"][1] = np.nan
    results = [
        gpucoron.ProductResult("a", fits={"b": t}, psfsub={"b": stack})
        for t in (table, table.copy())
    ]
    assert results[0] == results[1]
    table["name"][2] = "other"
    assert results[0] != results[1]
    assert "data=(3, 24, 28) float32" in repr(stack) and "var_flat=(3, 24, 28)" in repr(stack)
    shown = results[0]._repr_html_()
    assert "<td>psfsub</td>" in shown and "table of 3 rows: x, name" in shown
    for value in (stack, *results, gpucoron.steps.outlier_detection(stack)):
        assert len(repr(value)) < 400 and "\n" not in repr(value)


# ---- warnings and progress
WARNING = """
import sys, types, logging
from gpucoron.backend.progress import show_run
{setup}
with show_run({progress}) as progress:
    progress("klip", 1, 2)
    for _ in range(2):
        logging.getLogger("gpucoron").warning("one %s", "thing")
"""


@pytest.mark.parametrize(
    "setup, progress, shown",
    [
        ("", None, ["gpucoron warning: one thing"]),
        ("", False, ["gpucoron warning: one thing"]),
        ("logging.basicConfig(format='own: %(message)s')", None, 2 * ["own: one thing"]),
        ("logging.getLogger('gpucoron').addHandler(logging.NullHandler())", None, []),
        (
            "",
            "lambda *words: print(*words, file=sys.stderr)",
            ["klip 1 2", "gpucoron warning: one"],
        ),
    ],
)
def test_a_program_without_handlers_sees_each_warning_once(setup, progress, shown):
    done = python("-c", WARNING.format(setup=setup, progress=progress))
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and len(lines) == len(shown), lines
    assert all(line.startswith(text) for line, text in zip(lines, shown, strict=True))


# ---- errors
@pytest.mark.parametrize(
    "name, parents, code",
    [
        ("Usage", (), 2),
        ("Parameter", (errors.UsageError, ValueError), 2),
        ("Input", (ValueError,), 3),
        *((name, (errors.InputError,), 3) for name in ("Association", "Exposure", "Mask")),
        ("Device", (RuntimeError,), 4),
        ("Output", (OSError,), 5),
    ],
)
def test_errors_have_kinds_and_codes(name, parents, code):
    kind = getattr(errors, f"{name}Error")
    assert issubclass(kind, GpucoronError) and kind.exit_code == code
    assert all(issubclass(kind, parent) for parent in parents)
    assert getattr(gpucoron, kind.__name__) is kind and kind.__name__ in errors.__all__
    error = kind("found this, expected that")
    assert str(error) == "found this, expected that"
    again = pickle.loads(pickle.dumps(error))  # as a pool of workers hands it on
    assert type(again) is kind and str(again) == str(error)


def test_errors_can_be_caught(tmp_path, monkeypatch):
    monkeypatch.setattr("gpucoron.backend.device._may_have_gpu", lambda: False)
    for options, error, message in (
        ({"device": "cpu"}, gpucoron.AssociationError, "no such file, expected a level-3"),
        ({"device": "cpu", "klip_trunctae": 3}, ValueError, "did you mean 'klip.truncate'"),
        ({"device": "gpu"}, gpucoron.GpucoronError, "device is 'gpu'"),
        ({"device": 9}, gpucoron.DeviceError, "device 9 cannot be used"),
    ):
        with pytest.raises(error, match=message):
            gpucoron.run(tmp_path / "asn.json", **options)


# ---- steps on arrays alone
def make_stack(n, seed, shape=(24, 28), source=None):
    """Return read-only integrations of a star that wanders a little, with noise and bad pixels."""
    rng = np.random.default_rng(seed)
    images = [speckles(shape, rng.normal(0, 0.02, 2)) for _ in range(n)]
    data = (images + rng.normal(0, 0.1, (n, *shape))).astype(np.float32)
    if source is not None:
        data += gaussian(shape, *source, 20, 3).astype(np.float32)
    dq = np.zeros(data.shape, np.uint32)
    dq[:, 3, 4] = 1
    data[:, 3, 4] = np.nan
    variance = np.full_like(data, 0.01)
    arrays = read_only(data, np.sqrt(variance), dq)
    variances = ("var_poisson", "var_rnoise", "var_flat")
    return IntegrationStack(*arrays, **dict.fromkeys(variances, read_only(variance)))


def test_a_batch_job_without_files():
    """The five steps on arrays that may not be written to, and nothing else."""
    steps = gpucoron.steps
    science = steps.outlier_detection(make_stack(3, 1, source=(20, 7))).stack
    stack = steps.stack_refs(
        [steps.outlier_detection(make_stack(2, seed), snr=8.0).stack for seed in (2, 3, 4)]
    )
    aligned = steps.align_refs(science, stack)
    assert aligned.data.shape == (3, 6, 24, 28) and (aligned.fits["status"] == 0).all()
    filled = science.replace(data=steps.Alignment(science, stack, np.ones((24, 28))).science)
    subtracted = steps.klip(filled, aligned.data, truncate=4)
    star = np.s_[:, 7:17, 9:18]
    assert np.std(subtracted.data[star]) < 0.1 * np.nanstd(science.data[star])
    y, x = np.mgrid[:24, :28].astype(float)
    image = steps.resample([subtracted], [np.stack([x, y], axis=-1)], (24, 28))
    # the source is what is left
    assert np.unravel_index(np.nanargmax(image.data), image.data.shape) == (7, 20)
    assert np.isnan(image.data[3, 4]) and image.con.dtype == np.int32
    for array in (subtracted.data, subtracted.err, image.data, image.err, image.wht):
        assert array.dtype == np.float32


def test_steps_say_what_they_expected():
    """tests/steps and tests/core have the other errors."""
    with pytest.raises(gpucoron.InputError, match=r"expected \(nref, 24, 28\)"):
        gpucoron.steps.klip(make_stack(2, 1), np.ones((3, 24, 27)))


# ---- types; those of the steps, the parameters and `run` are mypy's to check
def untyped(function):
    """Return the names of parameters without a type, and "return" where the result has none."""
    signature = inspect.signature(function)
    # arrays, of NumPy or CuPy, may have none
    left = ("self", *"images data err mask references x y ra dec frame".split())
    names = [
        p.name
        for p in signature.parameters.values()
        if p.annotation is p.empty and p.name not in left and p.kind is not p.VAR_KEYWORD
    ]
    return names + ["return"] * (signature.return_annotation is signature.empty)


def test_what_users_call_first_is_typed():
    public = [getattr(gpucoron.io, name) for name in gpucoron.io.__all__]
    for kind in filter(inspect.isclass, public):
        own = {name: v for name, v in vars(kind).items() if not name.startswith("_")}
        public += [getattr(v, "__func__", v) for v in own.values()]  # of a classmethod
    for function in (gpucoron.simulate.simulate, *filter(inspect.isfunction, public)):
        assert untyped(function) == [], function.__qualname__
