"""Compute nodes: no network, no home, nothing writable but the output, fewer processors."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gpucoron.backend import caches
from tests.helpers import processes
from tests.helpers.tiny_sets import one_thread  # noqa: F401

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RUN = (sys.executable, "-m", "gpucoron")
NO_SOCKETS = """
import socket, sys

def refuse(*unused, **ignored):
    raise SystemExit("a connection was tried")

class Refusing(socket.socket):  # urllib3, which asdf's plugins import, binds one to ::1
    connect = connect_ex = sendto = sendmsg = refuse

socket.socket, socket.create_connection, socket.getaddrinfo = Refusing, refuse, refuse
from gpucoron.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def run(tiny, *command, options=(), files=11, **changes):
    """Run a command on the tiny set, count its products, and return its standard error."""
    words = tiny.words("--set", "klip.truncate=2", "--report", tiny.out, *options)
    done = processes.run(*command, *words, cwd=tiny.folder, PYTHONPATH=str(ROOT), **changes)
    assert done.returncode == 0, done.stderr
    assert len([n for n in tiny.files() if n.endswith(".fits")]) == files
    return done.stderr


def can(*command):
    """Tell whether a command works here."""
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False


def test_nothing_is_connected_to(tiny):
    """Nor is a home needed."""
    homeless = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"))
    run(tiny, sys.executable, "-c", NO_SOCKETS, CRDS_PATH=None, **homeless)


def test_without_a_home_and_without_any_network(tiny):
    """Where ``unshare -n`` is allowed; elsewhere with a network."""
    alone = ("unshare", "-rn") if can("unshare", "-rn", "true") else ()
    home = {"HOME": "/dev/null/home", "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None}
    assert "/dev/null" not in run(tiny, *alone, *RUN, **home)


READ_ONLY = """
mount --bind {work} {work} && mount -o remount,ro,bind / || exit 99
for folder in {frozen}; do mount --bind $folder $folder && mount -o remount,ro,bind $folder; done
touch {root}/gpucoron/ops/probe 2>/dev/null && exit 99
exec "$@"
"""


@pytest.mark.skipif(
    not can(*"unshare -rm mount --bind /tmp /mnt".split()), reason="unshare -m is not allowed here"
)
def test_package_and_home_are_read_only(tiny, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    mounted = {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()}
    frozen = {str(ROOT)} | {m for m in mounted if str(ROOT).startswith(m) and m != "/"}
    script = READ_ONLY.format(work=tmp_path, frozen=" ".join(sorted(frozen)), root=ROOT)
    homeless = {"HOME": "/dev/null/home", "XDG_CACHE_HOME": None, "NUMBA_CACHE_DIR": None}
    variables = {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(cache), **homeless}
    less = ("--set", "outlier_detection.skip=true", "--set", "klip.skip=true")
    few_loops = {"options": less, "files": 2}
    told = run(tiny, *"unshare -rm sh -c".split(), script, "sh", *RUN, **few_loops, **variables)
    kept = next(cache.glob("gpucoron-*"))
    assert list(kept.rglob("*.nbi"))
    assert f"compiled loops are kept in {kept}; set NUMBA_CACHE_DIR" in told
    assert told.count("compiling loops; they are kept on disk") == 1


def test_the_folder_in_the_temporary_one_is_this_users_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = Path(caches._own_folder())
    assert stat.S_IMODE(first.stat().st_mode) == 0o700 and first.parent == tmp_path
    assert caches._own_folder() == str(first)
    first.chmod(0o777)  # compiled code from here might be anybody's
    second = Path(caches._own_folder())
    assert second != first and stat.S_IMODE(second.stat().st_mode) == 0o700
    first.rmdir()
    first.symlink_to(second)
    assert caches._own_folder() not in (str(first), str(second))


@pytest.mark.parametrize(
    "place, kept", [("writable", None), ("", "gpucoron-"), ("/dev/null/x", "gpucoron-")]
)
def test_where_kernels_are_kept(place, kept, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "/dev/null/home")
    before = str(tmp_path / place) if place == "writable" else place
    monkeypatch.setenv("CUPY_CACHE_DIR", before)
    caches.cupy_cache()
    now = os.environ["CUPY_CACHE_DIR"]
    assert now == before if kept is None else now.startswith(str(tmp_path / kept))


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "NUMBA_NUM_THREADS"])
def test_processors_as_the_environment_says(variable, tiny):
    code = (
        "import gpucoron, json, sys; from gpucoron.pipeline import association\n"
        "from gpucoron.backend import threads\n"
        "found = []\n"
        "real = association.run_product\n"
        "association.run_product = lambda run, *rest: found.append("
        "(run.threads, threads.current_threads())) or real(run, *rest)\n"
        "gpucoron.run(sys.argv[1], 'cpu', save=(), keep=(), klip_truncate=2)\n"
        "print(json.dumps(found))"
    )
    variables = {"PYTHONPATH": str(ROOT), variable: "1"}
    done = processes.python("-c", code, tiny.asn, **variables)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[1, 1]]


def test_nothing_chooses_gpus_behind_the_environments_back():
    sources = [p.read_text() for p in (ROOT / "gpucoron").rglob("*.py")]
    assert not any("CUDA_VISIBLE_DEVICES" in text for text in sources)
