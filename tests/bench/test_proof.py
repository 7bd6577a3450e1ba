"""The proof on a GPU: of which code it is, what expires it, and from which results it is made."""

import functools
import json
import re
import shutil

import bench_gpu
import gpu_proof
import pytest

from gpucoron import __version__
from gpucoron.backend import cuda, proof

#: That of the code as it is, computed once.
CHECKSUM = functools.cache(gpu_proof.checksum)
EXPIRED = """\
the code that runs on a GPU has changed since it was proven on one ({card}, {date}, {result}), and
--device auto would take the GPU all the same. Either prove it again: bench/on_gpu.sh on a machine
with a GPU, then python bench/bench_gpu.py prove --out RESULT.json; or have auto take the CPU:
python bench/bench_gpu.py withdraw, and commit that gpucoron/backend/gpu_proof.json is gone."""


def expired(path):
    """What is wrong with the proof in a file; empty where nothing is, or there is none."""
    if not path.is_file():
        return ""
    stored = json.loads(path.read_text())
    if stored["version"] == __version__ and stored["code"] == gpu_proof.checksum():
        return ""
    return EXPIRED.format(**stored)


def test_the_proof_is_of_this_code():
    problem = expired(gpu_proof.PROOF)
    assert not problem, problem


# ---------------------------------------------------------------- what expires it
MODULE = '''"""A step."""
from gpucoron.backend import cuda

def step(image):
    """Do it."""
    return cuda.kernel("blur", "blur<float>")(image)
'''


@pytest.fixture
def package(tmp_path):
    """A package in small: files by name; gives the checksum of what they hold."""

    def checksum(text=MODULE, **others):
        shutil.rmtree(tmp_path / "gpucoron", ignore_errors=True)
        alone = {f"{n}/__init__": "" for n in ("core", "ops")}
        alone |= {n: "" for n in gpu_proof.PYTHON if "/" in n}
        for name, content in {**alone, "steps/one": text, **others}.items():
            path = tmp_path / "gpucoron" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return gpu_proof.digest(gpu_proof.modules(tmp_path))

    return checksum


def test_what_changes_nothing_does_not_expire_it(package):
    code = package()
    for text, others in (
        (MODULE.replace("Do it.", "Do it all,\n\n    and well."), {}),
        (MODULE.replace("A step.", "One step of five."), {}),
        (MODULE.replace("import cuda\n", "import cuda\n\n"), {}),
        (MODULE, {"ops/cpu/blur": "from numba import njit\n\n@njit\ndef blur(image): ..."}),
        (MODULE, {"io/files": "import os"}),
    ):
        assert package(text, **others) == code, (text, others)


def test_what_may_change_a_result_expires_it(package):
    codes = {
        package(text, **others)
        for text, others in (
            (MODULE, {}),
            (MODULE.replace("<float>", "<double>"), {}),
            (MODULE.replace("return", "return -"), {}),
            (MODULE, {"steps/two": "def other(): ..."}),
            (MODULE, {"ops/blur": "WIDTH = 3"}),
            (MODULE, {"ops/blur": "WIDTH = 4"}),
        )
    }
    assert len(codes) == 6
    for name in ("core/a", "ops/cuda/b", *(n for n in gpu_proof.PYTHON if "/" in n)):
        assert package(**{name: "WIDTH = 3"}) != package(), name


def test_what_runs_on_the_device_is_looked_at():
    """Every name of a kernel is in the modules, and none that chooses the device."""
    code = "\n".join(gpu_proof.modules())
    for name in "upload Kernel klip_many RawModule multiply_phases tile_shares".split():
        assert name in code
    assert not re.search(r"\b(choose_device|njit)\b", code)
    names = {
        name.partition("<")[0]
        for path in cuda.kernel_files()
        for name in cuda.read_kernels(path.stem).names
    }
    put_together = {"column_median", "tile_median"}
    assert {name for name in names if name not in code} <= put_together and "_median<" in code


KERNELS = """\
#line 1 "a.cu"
#define WIDTH 4  // wide
/* a kernel */
template <class T> __global__ void blur(T *x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;  // mine
  if (i < n) x[i] *= T(WIDTH) * 1.5e-3;
}
__global__ void plain(double *x) { for (int k = 0; k < 3; ++k) x[k] = 0; }
"""
NAMES = ("blur<float>", "plain")


def of_kernels(source=KERNELS, names=NAMES):
    return gpu_proof.tokens(cuda.Kernels(source, names))


@pytest.mark.parametrize(
    "old, new, same",
    [
        ("1.5e-3", "1.6e-3", False),
        ("WIDTH 4", "WIDTH 5", False),
        ("i < n", "i <= n", False),
        ("k < 3", "k < 4", False),
        ("int i =", "int index =", False),
        ("// mine", "// not yours", True),
        ("/* a kernel */", "", True),
        ("a.cu", "b.cu", True),
        ("line 1 ", "line 7 ", True),
        ("if (i < n)", "if(\n i<n )", True),
        ("WIDTH 4  //", "WIDTH \\\n 4 //", True),
    ],
)
def test_kernels(old, new, same):
    changed = KERNELS.replace(old, new)
    assert changed != KERNELS
    assert (of_kernels(changed) == of_kernels()) == same


def test_other_instantiations_are_other_kernels():
    assert of_kernels(names=("blur<double>", "plain")) != of_kernels()
    assert of_kernels(names=("plain", "blur< float >")) == of_kernels()


# ---------------------------------------------------------------- from which results
@pytest.fixture
def result(tmp_path, monkeypatch):
    """A result whose parts are all well, and what `prove` makes of it after a change."""
    monkeypatch.setattr(gpu_proof, "PROOF", tmp_path / "gpu_proof.json")
    monkeypatch.setattr(gpu_proof.prove, "__defaults__", (tmp_path / "gpu_proof.json",))
    monkeypatch.setattr(gpu_proof, "checksum", CHECKSUM)
    part = {"ok": True, "code": gpu_proof.checksum(), "commit": "abc1234", "date": "2026-01-02"}
    card = {"cupy": "14.2.0", "cuda_driver": 13000, "cuda_runtime": 13020}
    card |= {"name": "NVIDIA X", "description": "NVIDIA X, 8 GiB, compute capability 9.0"}
    parts = dict.fromkeys(("compare", "kernels", "tests", "cases", "start"), part)
    stored = {"where": {"gpu": card}, **parts}

    def prove(change=lambda stored: None):
        changed = json.loads(json.dumps(stored))
        change(changed)
        out = tmp_path / "result.json"
        out.write_text(json.dumps(changed))
        return bench_gpu.main(["prove", "--out", str(out)])

    prove.file = tmp_path / "gpu_proof.json"
    return prove


def test_a_result_that_is_well_is_a_proof(result, monkeypatch, capsys):
    assert result() == 0
    stored = json.loads(result.file.read_text())
    run = {"date": "2026-01-02", "commit": "abc1234", "result": "result.json"}
    card = {"card": "NVIDIA X", "capability": "9.0", "cupy": "14.2.0", "cuda": 13020}
    assert stored == {"version": __version__, **run, **card, "code": gpu_proof.checksum()}
    monkeypatch.setattr(proof, "FILE", result.file)
    read = proof.proof.__wrapped__
    assert read() == proof.Proof("NVIDIA X", "9.0", "2026-01-02")
    result.file.write_text(json.dumps({**stored, "version": "0.0.1"}))
    assert read() is None
    for text in ("", "[]", "{}", json.dumps({"version": __version__})):
        result.file.write_text(text)
        assert read() is None
    assert bench_gpu.main(["withdraw"]) == bench_gpu.main(["withdraw"]) == 0
    assert not result.file.exists() and read() is None


@pytest.mark.parametrize(
    "part, key, value, said",
    [
        ("compare", "ok", False, "compare: not ok"),
        ("kernels", "wrong", ["median n=4"], None),
        ("kernels", "unfinished", True, "kernels: not ok"),
        ("cases", "ok", False, "cases: not ok"),
        ("tests", "code", None, "tests: the result does not say of which code it is"),
        ("tests", "code", {"python": "1", "tokens": "2"}, "tests: the code has changed since"),
        ("compare", "tiny", True, "compare: done at tiny sizes"),
        ("compare", None, None, "compare: not done"),
        ("start", None, None, None),
        ("where", "gpu", None, "it does not come from a real GPU"),
        ("where", "gpu", {"name": "Emulated"}, "it does not come from a real GPU"),
    ],
)
def test_what_is_no_proof(result, capsys, part, key, value, said):
    def change(stored):
        if key is None:
            del stored[part]
        else:
            stored[part][key] = value

    assert result(change) == (1 if said else 0)
    assert capsys.readouterr().out.startswith(f"no proof: {said}" if said else str(result.file))
    assert result.file.exists() == (said is None)


def test_failed_tests_are_named(result, capsys):
    assert result(lambda s: s["tests"].update(ok=False, names=["a::b", "a::c"])) == 1
    assert capsys.readouterr().out == "no proof: tests: not ok a::b, a::c\n"


def test_an_expired_proof_says_what_to_do(result, monkeypatch):
    assert result() == 0
    monkeypatch.setattr(gpu_proof, "checksum", lambda: {"python": "1", "tokens": "2"})
    assert "(NVIDIA X, 2026-01-02, result.json)" in expired(result.file)
