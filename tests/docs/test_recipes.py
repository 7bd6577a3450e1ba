"""What docs/ gives to copy: the SLURM script, the container recipes."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import run
from tests.helpers.tiny_sets import TinySet, one_thread  # noqa: F401

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CONTAINER = ROOT / "docs" / "container"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_slurm_script_with_one_worker_here(tmp_path):
    tiny = TinySet(tmp_path)
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {
        "srun": 'exec "$@"',
        "python": f'exec {sys.executable} "$@"',
        "gpucoron": "exit 1",  # only its folder counts
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    environment = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_CPUS_PER_TASK": "1"}
    environment |= {"PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    words = (tiny.out, tiny.asn, *"--set klip.truncate=2 --device cpu".split())
    done = run("bash", ROOT / "docs" / "slurm" / "gpucoron.sbatch", *words, **environment)
    assert done.returncode == 0, done.stderr
    assert "1 association on 1 worker at" in done.stderr
    assert "1 association: 1 done, 0 failed" in done.stderr
    assert len([n for n in tiny.files() if n.endswith(".fits")]) == 11
    assert not list(tiny.out.glob(".scheduler*"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_slurm_script_without_gpucoron(tmp_path):
    script = ROOT / "docs" / "slurm" / "gpucoron.sbatch"
    done = run("bash", script, tmp_path / "out", "asn.json", PYTHON="/bin/false")
    assert done.returncode == 2 and done.stderr.startswith("/bin/false has no gpucoron with Dask")
    assert not (tmp_path / "out").exists()


def test_container_recipes_copy_what_the_package_is_made_of():
    docker = (CONTAINER / "Dockerfile").read_text()
    lines = [line for line in docker.splitlines() if line and not line.startswith("#")]
    assert {line.split()[0] for line in lines} == set(
        "FROM ARG COPY RUN ENV USER ENTRYPOINT".split()
    )
    apptainer = (CONTAINER / "gpucoron.def").read_text()
    sections = re.findall(r"^%(\w+)$", apptainer, re.M)
    assert sections == "files post environment runscript test".split()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert copied == {line.split()[0] for line in apptainer.splitlines() if " /src/" in line}
    assert all((ROOT / name).exists() for name in copied)
    base = re.search(r"^FROM (\S+)", docker, re.M)[1]
    assert base == re.search(r"^From: (\S+)", apptainer, re.M)[1]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base), "fixed to a release"
    for recipe in (docker, apptainer):
        assert "PIP_CONSTRAINT=/src/requirements.lock" in recipe
        assert "gpucoron compile --device cpu" in recipe
        assert len(set(re.findall(r"NUMBA_CACHE_DIR=(\S+)", recipe))) == 1
    assert lines[-2] != "USER root" and lines[-2].startswith("USER ")
