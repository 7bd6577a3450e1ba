"""The wheel and the sdist, as a release has them."""

import email
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import gpucoron
from tests.helpers import chance
from tests.helpers.processes import python, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
#: Tests of the sdist, run in its folder: some of each kind that need no data.
FEW = ("tests/test_dependencies.py", "tests/core/test_stack.py", "tests/io/test_names.py")


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Build both, as ``make dist`` does; return their paths."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    pytest.importorskip("hatch_fancy_pypi_readme", reason="hatch-fancy-pypi-readme is missing")
    folder = tmp_path_factory.mktemp("dist")
    done = python("-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_has_the_package_and_its_kernels(packages):
    names = set(zipfile.ZipFile(packages[0]).namelist())
    wanted = {p for p in (ROOT / "gpucoron").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    wanted = {p.relative_to(ROOT).as_posix() for p in wanted if p.suffix not in (".nbi", ".nbc")}
    wanted |= {f"gpucoron/_kernels/{p.name}" for p in (ROOT / "kernels").iterdir()}
    assert {name for name in names if ".dist-info/" not in name} == wanted


def test_the_description_is_that_of_readme_without_links_that_lead_nowhere(packages):
    wheel = zipfile.ZipFile(packages[0])
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    message = email.message_from_bytes(wheel.read(metadata))
    text = message.get_payload()
    assert message["Version"] == gpucoron.__version__
    assert text.startswith("# gpucoron") and "](" not in text and "docs/gpu.md" in text


def test_twine_has_no_complaint(packages):
    pytest.importorskip("twine", reason="twine is not installed")
    done = python("-m", "twine", "check", "--strict", *packages)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


def test_tests_run_from_the_sdist(packages, tmp_path):
    with tarfile.open(packages[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    words = ("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *FEW)
    done = python(*words, cwd=folder, PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stdout
    where = python("-c", "import gpucoron; print(gpucoron.__file__)", cwd=folder)
    assert where.stdout.startswith(str(folder))


def test_the_demo_runs_from_the_wheel(packages, tmp_path):
    """In an environment of its own, with the packages of this one; weekly with those of the lock.

    `make demo`, and the public workflow, install the declared dependencies and nothing else.
    """
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    commands = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    install = [commands / "python", "-m", "pip", "install", "--quiet"]
    if chance.EVERYTHING:
        done = run(*install, "-c", LOCK, packages[0])
        if done.returncode:
            pytest.skip(f"no registry of packages: {done.stderr.strip().splitlines()[-1]}")
    else:
        assert run(*install, "--no-deps", "--no-index", packages[0]).returncode == 0
        (site,) = (tmp_path / "venv").glob("[Ll]ib/**/site-packages")
        (site / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = run(commands / "gpucoron", "demo", cwd=tmp_path, timeout=1200, PYTHONPATH=None)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "gpucoron-demo" / "products").glob("*_i2d.fits"))) == 1
    rows = [
        line.split() for line in done.stdout.splitlines() if line.strip()[:2] in ("1 ", "2 ", "3 ")
    ]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all(float(row[-2]) > 5 for row in rows), "sigma of the three planets"
