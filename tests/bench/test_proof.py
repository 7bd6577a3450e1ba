"""The proof on a GPU: of which code it is, what expires it, and from which results it is made."""

import functools
import json
import re
import shutil
from pathlib import Path

import bench_gpu
import gpu_proof
import pytest

from gpucoron import __version__
from gpucoron.backend import cuda, proof
from tests.helpers import nvrtc
from tests.helpers.processes import python

ROOT = Path(__file__).resolve().parents[2]
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
    code = gpu_proof.with_ptx(gpu_proof.checksum())
    if stored["version"] == __version__ and gpu_proof.same(stored["code"], code):
        return ""
    return EXPIRED.format(**stored)


def test_the_proof_is_of_this_code():
    problem = expired(gpu_proof.PROOF)
    assert not problem, problem


# ---------------------------------------------------------------- what expires it
@pytest.fixture
def package(tmp_path):
    """A package in small: files by name; gives the checksum of what they hold."""

    def checksum(**files):
        shutil.rmtree(tmp_path / "gpucoron", ignore_errors=True)
        packages = {f"{name}__init__": "" for name in ("", "backend/", "ops/", "steps/")}
        for name, text in {**packages, **files}.items():
            path = tmp_path / "gpucoron" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return gpu_proof.digest(gpu_proof.definitions(tmp_path))

    return checksum


STEP = '''
"""A step."""
from gpucoron.ops import blur
from gpucoron.ops._blur_cpu import on_cpu

def step(image):
    """Do it."""
    # on the device
    return blur.blurred(image) if image.ndim else on_cpu(image)
'''
BLUR = """
import numpy as np
from gpucoron.backend import cuda
WIDTH = 3
OTHER = 5

def blurred(image):
    total = np.zeros(WIDTH)
    cuda.kernel("blur", "blur<float>")((1,), (32,), (image, total))
    return total, f"done {total} of" " all"

def unused():
    return OTHER
"""
CUDA = "def kernel(file, name):\n    return file, name\n"
CPU = "import numba\nfrom gpucoron.ops.loop import loop\ndef on_cpu(image):\n    return loop(image)"
LOOP = "def loop(image):\n    return image + 1"
FILES = {"steps/one": STEP, "ops/blur": BLUR, "ops/_blur_cpu": CPU, "ops/loop": LOOP}
FILES["backend/cuda"] = CUDA


def replaced(name, *changes):
    """The files with parts of one exchanged: old, new, old, new ..."""
    text = FILES[name]
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    return {**FILES, name: text}


def test_what_changes_nothing_does_not_expire_it(package):
    code = package(**FILES)
    moved = replaced("steps/one", "import blur", "import haze", "blur.", "haze.")
    moved["ops/haze"] = moved.pop("ops/blur")
    direct = "ops import blur", "ops.blur import blurred", "blur.blurred", "blurred"
    split = replaced("ops/blur", "WIDTH = 3", "from gpucoron.ops.wide import WIDTH")
    split["ops/wide"] = "WIDTH = 3"
    for files in (
        replaced("steps/one", "# on the device", "# elsewhere"),
        replaced("steps/one", '"""Do it."""', '"""Do it all,\n\n    and well."""'),
        replaced("steps/one", '"""A step."""', ""),
        replaced("ops/blur", "np.zeros(WIDTH)", "np.zeros(\n        WIDTH,\n    )"),
        replaced("ops/blur", '" all"', "' all'"),
        replaced("ops/blur", 'of" " all"', 'of all"'),
        replaced("ops/blur", 'kernel("blur"', 'kernel("haze"'),  # the file of the kernel
        replaced("ops/blur", "import numpy as np", "import sys, numpy as np"),
        replaced("ops/blur", "blurred(image)", "blurred(image: np.ndarray) -> tuple[OTHER]"),
        replaced("ops/blur", "    total =", "    count: OTHER\n    total: OTHER ="),
        replaced("ops/blur", "WIDTH = 3", "if TYPE_CHECKING:\n    import x\nWIDTH: int = 3"),
        replaced("ops/blur", "OTHER = 5", "OTHER = 6"),  # nothing on the device reads it
        replaced("ops/blur", "return OTHER", "return -OTHER"),
        replaced("ops/loop", "image + 1", "image + 2"),  # for the CPU alone
        replaced("ops/_blur_cpu", "loop(image)", "loop(2 * image)"),
        replaced("steps/one", *direct),
        replaced("steps/one", "import blur", "import blur as b", "blur.blurred", "b.blurred"),
        moved,
        split,
    ):
        assert package(**files) == code, files


def test_what_may_change_a_result_expires_it(package):
    codes = [
        package(**files)
        for files in (
            FILES,
            replaced("ops/blur", "total", "totals"),
            replaced("ops/blur", "WIDTH = 3", "class WIDTH:\n    a: int = 3"),
            replaced("ops/blur", "WIDTH = 3", "class WIDTH:\n    a: ClassVar[int] = 3"),
            replaced("ops/blur", "WIDTH = 3", "WIDTH = 4"),
            replaced("ops/blur", "np.zeros(WIDTH)", "np.zeros(OTHER)"),
            replaced("ops/blur", "blur<float>", "blur<double>"),
            replaced("ops/blur", "(32,)", "(64,)"),
            replaced("ops/blur", "import numpy", "import cupy"),
            replaced("backend/cuda", "file, name\n", "name, file\n"),
            replaced("steps/one", "if image.ndim", "if not image.ndim"),
            replaced("steps/one", "blur.blurred", "blur.unused"),
            {**FILES, "steps/two": "def other():\n    pass"},
            {**FILES, "backend/transfer": "def upload():\n    pass"},
        )
    ]
    assert len(set(codes)) == len(codes)


def test_modules_that_are_passed_on_count_as_a_whole(package):
    """As where one of two modules with the same functions is chosen."""
    chosen = """
def step(image, there):
    if there:
        from gpucoron.ops import blur as ops
    else:
        from gpucoron.ops import _blur_cpu as ops
    return both(ops, image)

def both(ops, image):
    return ops.blurred(image)
"""
    cpu = CPU.replace("on_cpu", "blurred")
    files = {**FILES, "steps/one": chosen, "ops/_blur_cpu": cpu}
    code = package(**files)
    assert package(**{**files, "ops/blur": BLUR.replace("WIDTH = 3", "WIDTH = 4")}) != code
    assert package(**{**files, "ops/blur": BLUR.replace("return OTHER", "return 1")}) != code
    assert package(**{**files, "ops/_blur_cpu": cpu.replace("loop(image)", "-image")}) == code
    chosen = chosen.replace("ops.blurred(image)", "ops.blurred")
    assert package(**{**files, "steps/one": chosen}) != code


def test_attributes_of_definitions_count(package):
    step = "from gpucoron import cuda\ndef step():\n    return cuda.Kernel.{}(cuda.kernel.{})"
    files = {**FILES, "cuda": f"{CUDA}class Kernel:\n    def of(self):\n        return 1\n"}
    codes = {
        package(**{**files, "steps/one": step.format(*words)})
        for words in (("of", "a"), ("by", "a"), ("of", "b"))
    }
    changed = {**files, "cuda": files["cuda"].replace("return 1", "return 2")}
    codes.add(package(**{**changed, "steps/one": step.format("of", "a")}))
    assert len(codes) == 4


def test_names_that_lead_nowhere_are_an_error(package):
    with pytest.raises(ValueError, match=r"gpucoron.ops.blur does not define smeared"):
        package(**replaced("steps/one", "blur.blurred", "blur.smeared"))
    with pytest.raises(ValueError, match="none of gpucoron.steps, "):
        package(**{"ops/blur": BLUR})


def test_what_runs_on_the_device_is_reached():
    code = "\n".join(gpu_proof.definitions())
    for name in (
        "upload Kernel klip_many RawModule set_reduction_accelerators multiply_phases "
        "tile_shares _write"
    ).split():
        assert name in code
    assert not re.search(r"\b(choose_device|numba)\b", code)
    texts = " ".join(re.findall(r"value='([^']*)'", code))
    kernels = {
        name.partition("<")[0]
        for path in cuda.kernel_files()
        for name in cuda.read_kernels(path.stem).names
    }
    put_together = {"column_median", "tile_median"}
    assert {name for name in kernels if name not in texts} == put_together and "_median<" in texts


KERNELS = """\
#line 1 "a.cu"
#define WIDTH 4  // wide
/* a kernel */
template <class T> __global__ void blur(T *x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;  // mine
  if (i < n) x[i] *= T(WIDTH) * 1.5e-3;
}
namespace { __device__ double inside[3]; }
__global__ void plain(double *x) { for (int k = 0; k < 3; ++k) x[k] = inside[k]; }
"""
NAMES = ("blur<float>", "plain")


def kernel_codes(source, names=NAMES):
    kernels = [cuda.Kernels(source, names)]
    tokens = {"python": "", "tokens": gpu_proof.digest(map(gpu_proof.tokens, kernels))}
    return tokens, gpu_proof.with_ptx(tokens, kernels)


@pytest.mark.parametrize(
    "old, new, by_tokens, by_ptx",
    [
        ("1.5e-3", "1.6e-3", False, False),
        ("WIDTH 4", "WIDTH 5", False, False),
        ("i < n", "i <= n", False, False),
        ("k < 3", "k < 4", False, False),
        ("inside", "within", False, False),
        ("int i =", "int index =", False, True),
        ("// mine", "// not yours", True, True),
        ("/* a kernel */", "", True, True),
        ("a.cu", "b.cu", True, True),
        ("line 1 ", "line 7 ", True, True),
        ("if (i < n)", "if(\n i<n )", True, True),
        ("WIDTH 4  //", "WIDTH \\\n 4 //", True, True),
    ],
)
def test_kernels(old, new, by_tokens, by_ptx):
    changed = KERNELS.replace(old, new)
    if old == "int i =":
        changed = changed.replace("(i < n) x[i]", "(index < n) x[index]")
    assert changed != KERNELS
    (one, with_ptx), (other, other_ptx) = kernel_codes(KERNELS), kernel_codes(changed)
    assert gpu_proof.same(one, other) == by_tokens
    if not nvrtc.find():
        return
    assert gpu_proof.same(with_ptx, other_ptx) == by_ptx
    newer = {**other_ptx, "nvrtc": "99.0", "ptx": "other"}
    assert gpu_proof.same(with_ptx, newer) == gpu_proof.same(newer, with_ptx) == by_tokens


def test_other_instantiations_are_other_kernels():
    (one, with_ptx), (other, other_ptx) = (
        kernel_codes(KERNELS),
        kernel_codes(KERNELS, ("blur<double>", "plain")),
    )
    assert not gpu_proof.same(one, other) and not gpu_proof.same(with_ptx, other_ptx)
    assert gpu_proof.same(one, kernel_codes(KERNELS, ("plain", "blur< float >"))[0])


@pytest.mark.skipif(not nvrtc.find(), reason="no NVRTC")
def test_ptx_is_the_same_in_another_process():
    """Names of what is in an unnamed namespace hold the process's number."""
    text = nvrtc.ptx(KERNELS, 90, NAMES)
    assert "_GLOBAL__N__" in text or "_INTERNAL_" in text
    beside = (
        "from tests.helpers import nvrtc; from tests.bench import test_proof as t; import sys; "
        "sys.stdout.write(nvrtc._ptx(t.KERNELS, t.NAMES, [*nvrtc.CUPY_OPTIONS, "
        "'-std=c++17', '-arch=compute_90']))"
    )
    other = python("-c", beside, cwd=ROOT).stdout
    assert gpu_proof.bare(text) == gpu_proof.bare(other)
    name = "_ZN{}_INTERNAL_00000000_10_kernels_cu_{}6newton5WARPSE"
    one, two = (name.format(len(k) + 33, k) for k in ("e7713579_1783", "82a80b39_17836"))
    assert gpu_proof.bare(one) == gpu_proof.bare(two) == "_ZN_unnamed6newton5WARPSE"


# ---------------------------------------------------------------- from which results
@pytest.fixture
def result(tmp_path, monkeypatch):
    """A result whose parts are all well, and what `prove` makes of it after a change."""
    monkeypatch.setattr(gpu_proof, "PROOF", tmp_path / "gpu_proof.json")
    monkeypatch.setattr(gpu_proof.prove, "__defaults__", (tmp_path / "gpu_proof.json",))
    monkeypatch.setattr(gpu_proof, "with_ptx", lambda code: {**code, "ptx": "x", "nvrtc": "13.0"})
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
    code = {**gpu_proof.checksum(), "ptx": "x", "nvrtc": "13.0"}
    assert stored == {"version": __version__, **run, **card, "code": code}
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


@pytest.mark.skipif(not nvrtc.find(), reason="no NVRTC; pip install nvidia-cuda-nvrtc==13.0.*")
@pytest.mark.slow
def test_a_proof_is_renewed_for_the_same_ptx_only(tmp_path):
    code = gpu_proof.with_ptx(gpu_proof.checksum())
    file = tmp_path / "proof.json"
    file.write_text(json.dumps({"card": "a", "code": {**code, "tokens": "others"}}))
    assert gpu_proof.renew(file) == ""
    assert json.loads(file.read_text()) == {"card": "a", "code": code}
    for part in ("ptx", "python"):
        wrong = json.dumps({"code": {**code, part: "others"}})
        file.write_text(wrong)
        assert gpu_proof.renew(file) == "the code, or NVRTC, is not that of the proof"
        assert file.read_text() == wrong
