"""Dependencies and versions: declared, used, locked, and the same wherever they are stated."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gpucoron

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
EXTRAS = PROJECT["optional-dependencies"]
TOOLS = {"test", "docs", "release", "siaf"}  # extras of those who develop gpucoron
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
#: What a package's module is called, where that is not the package's name.
MODULES = {"pyyaml": "yaml", "asdf-astropy": "asdf_astropy", "lazy-loader": "lazy_loader"}
MODULES |= {"ipython": "IPython"}
MODULES |= {"cupy-cuda12x": "cupy", "cupy-cuda13x": "cupy"}
#: Declared although nothing imports it: asdf finds it by its entry points.
PLUGINS = {"asdf_astropy"}
PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64"))
MACHINES = [
    {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0"}
    | {"sys_platform": platform, "platform_machine": machine}
    for minor in (11, 12, 13)
    for platform, machine in PLATFORMS
]


def requirements(machine, *extras):
    """Return the requirements on a machine without extras, or those of extras."""
    found = [] if extras else PROJECT["dependencies"]
    found = map(Requirement, found + [text for extra in extras for text in EXTRAS[extra]])
    for requirement in found:
        if requirement.marker is None or requirement.marker.evaluate(machine):
            own = requirement.name == PROJECT["name"]
            yield from requirements(machine, *requirement.extras) if own else [requirement]


def imported():
    """Return the top-level names of all modules that the package imports."""
    for path in (ROOT / "gpucoron").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.partition(".")[0]


def test_imports_are_declared_and_what_is_declared_is_used():
    used = set(imported()) - set(sys.stdlib_module_names) - {PROJECT["name"]}
    needed, optional = (
        {MODULES.get(r.name, r.name) for m in MACHINES for r in requirements(m, *extras)}
        for extras in ((), EXTRAS.keys() - TOOLS)
    )
    assert used - needed - optional == set()
    assert needed - used == PLUGINS and optional - used == set()


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: "-".join(list(m.values())[1:]))
def test_the_lock_has_a_version_of_all_that_is_asked_for(machine):
    locked = {}
    for requirement in (Requirement(line) for line in LOCK if not line.startswith("#")):
        if requirement.marker is None or requirement.marker.evaluate(machine):
            (exact,) = requirement.specifier
            assert exact.operator == "==" and requirement.name not in locked
            locked[requirement.name] = exact.version
    build = map(Requirement, BUILD)
    extras = requirements(machine, "test", "jwst", "docs", "release")
    for requirement in [*build, *requirements(machine), *extras]:
        name = canonicalize_name(requirement.name)
        assert locked[name] in requirement.specifier, f"{name}: run make lock"


def test_the_lock_names_versions_only():
    version = re.compile(r"#.*|[\w-]+==[\w.]+( ; [\w.<>=!'() ]+)?")
    assert [line for line in LOCK if not version.fullmatch(line)] == []


def test_pre_commit_uses_the_versions_of_the_lock():
    locked = dict(line.split("==") for line in LOCK if "==" in line and " ; " not in line)
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    tools = {"ruff-pre-commit": "ruff", "mirrors-clang-format": "clang-format"}
    public = {r["repo"].rpartition("/")[2]: r["rev"] for r in repos if r["repo"] != "local"}
    assert public
    for name, rev in public.items():
        assert rev == f"v{locked[tools.get(name, name)]}"


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changes = re.findall(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
    assert str(citation["version"]) == recipe["context"]["version"] == gpucoron.__version__
    assert gpucoron.__version__ in changes and changes[0] in (gpucoron.__version__, "Unreleased")


def test_conda_asks_for_the_same():
    """In the environment, and in the recipe, which installs for every system what one needs."""
    of_conda = {"astropy": "astropy-base", "lazy-loader": "lazy_loader"}
    of_conda |= {"matplotlib": "matplotlib-base"}
    wanted = [Requirement(text) for text in [*PROJECT["dependencies"], *BUILD]]
    expected = {f"{of_conda.get(r.name, r.name)} {r.specifier}" for r in wanted}
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python, pip, *packages, from_here = environment
    assert set(packages) == expected and pip == "pip" and from_here["pip"][-1] == "."
    assert python.startswith(f"python {PROJECT['requires-python']}")
    needs = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())["requirements"]
    assert {*needs["host"], *needs["run"]} == {*expected, python.partition(",")[0], "pip"}
