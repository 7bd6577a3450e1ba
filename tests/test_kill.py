"""A run that is killed on the spot: what has a product's name is a whole product."""

import os
import signal
import subprocess
import sys
import time

import pytest

from gpucoron.simulate import simulate
from tests.tiny_sets import TinySet, complete, one_thread  # noqa: F401

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")

# Runs the command line in its arguments, and dies in the midst of the n-th call of a function: of
# "pwrite" and "write" half of the bytes arrive; "replace" dies before it, "replaced" after it.
DIE = """
import os, signal, sys

function, number = sys.argv[1], int(sys.argv[2])
calls = 0

def dying(real, half):
    def wrapper(*args):
        global calls
        calls += 1
        if calls < number:
            return real(*args)
        half(*args)
        os.kill(os.getpid(), signal.SIGKILL)
    return wrapper

def half_an_image(file, array, dtype):
    file.write(array.tobytes()[:array.nbytes // 2])
    file.flush()

from gpucoron.cli import main
from gpucoron.io import fits_writer, psfalign
if function == "pwrite":
    real = os.pwrite
    os.pwrite = dying(real, lambda fd, data, offset: real(fd, data[:len(data) // 2], offset))
elif function == "write":
    fits_writer._write_image = dying(fits_writer._write_image, half_an_image)
else:
    real = os.replace
    os.replace = dying(real, real if function == "replaced" else lambda *args: None)
sys.exit(main(sys.argv[3:]))
"""
WORDS = ("--device", "cpu", "-q", "--set", "klip.truncate=3")


def look(folder):
    """Assert that everything is whole or has a temporary name; return the names of both kinds."""
    names = sorted(p.name for p in folder.iterdir())
    whole = [n for n in names if n.endswith(".fits")]
    for name in whole:
        complete(folder / name)
    rest = [n for n in names if not n.endswith(".fits")]
    assert all(n.startswith(".") and n.endswith(".part") for n in rest), rest
    return whole, rest


@pytest.mark.parametrize("function, number, whole, rest", [
    ("write", 1, 0, "crfints"), ("write", 23, 3, "psfstack"), ("pwrite", 25, 5, "psfalign"),
    ("pwrite", 60, 8, "psfalign"), ("replace", 6, 5, "psfalign"), ("replaced", 6, 6, None),
])
def test_killed_while_writing(function, number, whole, rest, tmp_path):
    tiny = TinySet(tmp_path)
    words = [str(tiny.asn), "--output-dir", str(tiny.out), *WORDS]
    done = subprocess.run([sys.executable, "-c", DIE, function, str(number), *words],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    complete_names, left = look(tiny.out)
    assert len(complete_names) == whole
    assert len(left) == (rest is not None) and all(f"_{rest}.fits." in name for name in left)
    # what is left is in nobody's way
    assert tiny.command(*WORDS) == 0
    assert len(look(tiny.out)[0]) == 11 and look(tiny.out)[1] == left


def test_killed_from_outside_while_references_are_written(tmp_path):
    made = simulate(tmp_path / "in", "nircam", 3, shape=(160, 160), n_science=1, n_integrations=9,
                    n_references=2, n_reference_integrations=10, planets=(), disk=False,
                    n_optical_states=1)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from gpucoron.cli import main; main(sys.argv[1:])",
         str(made.asn), "--output-dir", str(out), *WORDS], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob(".*_psfalign.fits.*.part")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    process.kill()
    process.wait()
    whole, left = look(out)
    if process.returncode == -signal.SIGKILL and not any("psfalign" in name for name in whole):
        assert len(left) == 1 and not any("psfsub" in name for name in whole)
