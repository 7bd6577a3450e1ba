"""Every instantiation of every kernel, compiled for every generation of GPU that is supported.

NVRTC is what CuPy calls at run time; it is stricter than nvcc (no INFINITY, no <cmath>), and its
log tells what a kernel will use. Nothing here needs a GPU.
"""

import re
import shutil

import pytest

from gpucoron.backend import cuda
from tests.helpers import chance, nvrtc
from tests.helpers.processes import run

pytestmark = pytest.mark.slow

#: The oldest and the newest; all of them once a week.
ARCHITECTURES = (75, 80, 90, 120) if chance.EVERYTHING else (75, 120)
FILES = [path.stem for path in cuda.kernel_files()]
NVCC = shutil.which("nvcc")

#: What kernels may use of the slow local memory, each with its reason:
#: (name, architecture) -> {"stack": bytes, "spills": bytes}. A stack is mostly an array in
#: registers that was indexed with something the compiler does not know.
ALLOWED = {
    # two registers of 254, on a generation with little float64; once per frame, not per pair
    ("contract<21, 6, 1>", 75): {"stack": 8, "spills": 16}
}

needs_nvrtc = pytest.mark.skipif(
    not nvrtc.find(), reason="no NVRTC; pip install nvidia-cuda-nvrtc==13.0.*"
)


def test_every_file_declares_what_it_instantiates():
    assert {name for name, _ in ALLOWED} <= {name for _, name in cuda.all_kernels()}
    for file in FILES:
        source, names = cuda.read_kernels(file)
        assert names and len(set(names)) == len(names)
        defined = re.findall(r"__global__[^;{]*?\b(\w+)\s*\(\s*(?!\d)", source)
        assert {name.partition("<")[0] for name in names} >= set(defined) - {"__launch_bounds__"}


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_it_compiles_without_warnings_and_keeps_to_registers(file, arch):
    source, names = cuda.read_kernels(file)
    made = nvrtc.compile_kernels(source, arch, names, cuda.OPTIONS)
    assert "warning" not in made["log"], made["log"]
    for name, used in made["kernels"].items():
        allowed = ALLOWED.get((name, arch), {})
        assert used["spills"] <= allowed.get("spills", 0), f"{name} spills registers: {used}"
        assert used["stack"] <= allowed.get("stack", 0), f"{name} has a stack: {used}"
        # a block of the size that the launch bound allows must find room
        granted = -(-used["registers"] // 8) * 8 * used["threads"]
        assert granted <= 65536, f"{name} cannot be launched in full blocks: {used}"


@needs_nvrtc
@pytest.mark.parametrize("culprit", ["x[0] = undeclared;", "x[0] = INFINITY;", "#include <cmath>"])
def test_what_cannot_run_is_refused(culprit):
    source = f"template <class T> __global__ void k(T *x) {{\n{culprit}\n }}"
    with pytest.raises(nvrtc.NvrtcError, match=re.escape(culprit)):
        nvrtc.compile_kernels(source, 90, ["k<float>"])


@needs_nvrtc
def test_spills_stacks_and_bounds_are_seen():
    source = """
    template <int N> __global__ void __launch_bounds__(N) k(float *x, int i) {
      float a[64] = {};
      for (int j = 0; j < i; ++j) a[static_cast<int>(x[j]) & 63] += 1.0f;
      x[0] = a[i & 63];
    }
    __global__ void __launch_bounds__(64, 2) two_dimensional(float *x) { x[threadIdx.y] = 1; }
    __global__ void unbounded(float *x) { x[threadIdx.y] = 1; }
    """
    used = nvrtc.compile_kernels(source, 80, ["k<96>", "two_dimensional", "unbounded"])["kernels"]
    assert used["k<96>"]["stack"] == 256
    assert [u["threads"] for u in used.values()] == [96, 64, 1024]


@pytest.mark.skipif(not NVCC, reason="no nvcc on the path")
@pytest.mark.parametrize("file", FILES)
def test_nvcc_has_no_warning(file, tmp_path):
    source, names = cuda.read_kernels(file)
    uses = ", ".join(f"reinterpret_cast<const void *>(&{name})" for name in names)
    path = tmp_path / f"{file}.cu"
    path.write_text(f"namespace gpucoron {{\n{source}\nextern const void *used[] = {{{uses}}};\n}}")
    options = "-ptx -Xcicc -O0 -arch=sm_90 -std=c++17 -Werror=all-warnings --expt-relaxed-constexpr"
    done = run(NVCC, *options.split(), "-o", tmp_path / "out.ptx", path)
    assert done.returncode == 0, done.stderr
