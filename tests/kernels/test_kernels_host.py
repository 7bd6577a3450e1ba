"""The stand-in for a GPU itself: it runs kernels rightly, and finds what was planted in them."""

import contextlib

import numpy as np
import pytest

from gpucoron.backend.cuda import paste_includes
from tests.helpers import nvrtc
from tests.helpers.cuda_on_host import build, planted, sanitized
from tests.helpers.cuda_on_host.launcher import HostModule, LaunchError

pytestmark = pytest.mark.skipif(not build.COMPILER, reason=build.NO_COMPILER)

ORDERS = [{"order": "forward"}, {"order": "backward"}]
ORDERS += [{"order": "shuffled", "seed": seed} for seed in range(3)]


def agrees(got, right):
    return np.allclose(got, right, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", ["float", "double"])
def test_a_right_kernel_is_right_in_every_order(dtype):
    for order in ORDERS:
        for flags in (build.PLAIN, build.contracting()):
            assert agrees(*planted.means("NONE", dtype, flags, **order))


def test_a_missing_barrier_is_found():
    assert not all(agrees(*planted.means("NO_BARRIER", **order)) for order in ORDERS)


def test_a_wrong_branch_for_nan_is_found():
    assert not agrees(*planted.means("NAN_BRANCH"))


@pytest.mark.parametrize(
    "bug, shared, problem",
    [
        ("NONE", planted.COLUMNS, ""),
        ("FAR_WRITE", planted.COLUMNS, "heap-buffer-overflow"),
        ("SHORT_SHARED", planted.COLUMNS, "global-buffer-overflow"),
        ("NONE", planted.COLUMNS - 1, "heap-buffer-overflow"),  # dynamic shared memory
        ("FAR_REGISTER", planted.COLUMNS, "stack-buffer-overflow"),
    ],
)
def test_accesses_out_of_bounds_are_found(bug, shared, problem):
    said = sanitized.call("tests.helpers.cuda_on_host.planted:sanitized", bug, str(shared))
    assert (problem in said and "planted.cu:" in said) if problem else said == ""


@pytest.mark.parametrize("bug", ["NONE", "STRAY_DOUBLE"])
@pytest.mark.parametrize("dtype", ["float", "double"])
def test_stray_double_arithmetic_is_found(bug, dtype):
    found = pytest.raises(build.BuildError, match=r"planted.cu:\d+:.*double-promotion")
    is_stray = (bug, dtype) == ("STRAY_DOUBLE", "float")
    with found if is_stray else contextlib.nullcontext():
        names = planted.names(dtype, [bug])
        build.check("planted", planted.source(), names, build.NO_STRAY_DOUBLE)


@pytest.mark.skipif(not nvrtc.find(), reason="no NVRTC; pip install nvidia-cuda-nvrtc==13.0.*")
def test_the_planted_kernel_is_one_for_a_gpu():
    names = planted.names("float", planted.WRONG)
    used = nvrtc.compile_kernels(planted.source(), 90, names)["kernels"]
    assert all(kernel["threads"] == 128 for kernel in used.values())


# ---------------------------------------------------------------- what the language needs
HEADER = '#line 1 "test.cu"\n' + paste_includes(planted.FILE).partition("enum Bug")[0]


def run(body, n=64, grid=(1,), block=(64,), dtype=np.int32, shared_mem=0, **order):
    """Run ``out[i] = ...`` and return out."""
    kind = {"int32": "int", "float32": "float", "float64": "double"}[np.dtype(dtype).name]
    source = f"{HEADER}\n__global__ void k({kind} *out) {{ {body} }}"
    out = np.zeros(n, dtype)
    HostModule("test", source, ["k"]).get_function("k")(grid, block, (out,), shared_mem, **order)
    return out


@pytest.mark.parametrize("order", ORDERS)
def test_warps_and_votes(order):
    lane = np.arange(64) % 32
    out = run(
        """
        int t = threadIdx.x, lane = t & 31;
        out[t] = __shfl_down_sync(~0u, lane, 3);
        out[64 + t] = __shfl_up_sync(~0u, lane, 3, 8);
        out[128 + t] = __shfl_sync(~0u, lane, 5, 16);
        out[192 + t] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
        out[256 + t] = warp_sum(lane);
        if (lane < 16) out[320 + t] = __shfl_xor_sync(0xffffu, t, 1);
        else out[320 + t] = __shfl_xor_sync(0xffff0000u, t, 2);
        out[384 + t] = __syncthreads_count(t < 7) + 100 * __syncthreads_or(t == 9);
        """,
        n=448,
        **order,
    ).reshape(7, 64)
    assert (out[0] == np.where(lane + 3 < 32, lane + 3, lane)).all()
    assert (out[1] == np.where(lane % 8 >= 3, lane - 3, lane)).all()
    assert (out[2] == lane // 16 * 16 + 5).all()
    assert (out[3] == sum(1 << k for k in range(0, 31, 3))).all()
    assert (out[4] == 496).all()
    assert (out[5] == np.where(lane < 16, np.arange(64) ^ 1, np.arange(64) ^ 2)).all()
    assert (out[6] == 107).all()


def test_blocks_grids_and_atomics():
    out = run(
        """
        int i = thread_rank() + block_threads() * (blockIdx.x + gridDim.x * blockIdx.y);
        out[i] += threadIdx.z * 100 + threadIdx.y * 10 + threadIdx.x;
        atomicAdd(out + 144, 1); atomicMax(out + 145, i); atomicCAS(out + 146, 0, i + 1);
        """,
        **{"n": 147, "grid": (2, 3), "block": (4, 3, 2), "order": "backward"},
    )
    z, y, x = np.indices((2, 3, 4)).reshape(3, -1)
    assert (out[:24] == 100 * z + 10 * y + x).all()
    assert (out[:144].reshape(6, 24) == out[:24]).all()
    assert out[144:].tolist() == [144, 143, 144]


def test_mathematics():
    out = run(
        """
        out[0] = sinpi(1e9 + 0.5); out[1] = cospi(-1.0); out[2] = rsqrt(4.0);
        out[3] = __double2int_rn(2.5); out[4] = __float2int_rz(-1e20f);
        out[5] = __double2int_rd(nan_of<double>()); out[6] = inf_of<double>();
        out[7] = fabs(-2.0f) + min(1, 2) + max(1.0, nan_of<double>());
        """,
        **{"n": 8, "block": (1,), "dtype": np.float64},
    )
    assert out.tolist() == [1, -1, 0.5, 2, -(2**31), 0, np.inf, 4]


@pytest.mark.parametrize(
    "body, problem",
    [
        ("if (threadIdx.x < 40) __syncthreads();", "left the kernel"),
        ("if (threadIdx.x < 40) __syncthreads(); \n else __syncthreads();", "met by one at line"),
        ("if (threadIdx.x & 1) __syncwarp(); else __syncthreads();", "deadlock"),
        ("if (threadIdx.x & 1) __syncwarp(1u);", "own lane is not in the mask"),
        ("out[0] = __shfl_sync(1u << (threadIdx.x & 31), 1, 7);", "takes no part"),
        ("if (threadIdx.x & 1) __syncwarp(); else __ballot_sync(~0u, 1);", "another intrinsic"),
        ("if (threadIdx.x == 33) __trap();", r"thread \(33, 0, 0\) of block \(0, 0, 0\)"),
    ],
)
def test_faults_of_order_are_named(body, problem):
    with pytest.raises(LaunchError, match=problem):
        run(body)
    assert (run("out[threadIdx.x] = 1;") == 1).all()  # the next launch is not harmed


def test_shared_memory_starts_as_garbage():
    body = """__shared__ float a[64]; DYN_SHARED(float, b);
        if (out[0] > 0.0f) a[threadIdx.x] = 1.0f;  // or the compiler sees that nothing is written
        out[threadIdx.x] = a[threadIdx.x]; out[64 + threadIdx.x] = b[threadIdx.x];"""
    assert np.isnan(run(body, n=128, dtype=np.float32, shared_mem=256)).all()


@pytest.mark.parametrize(
    "args, problem",
    [
        (lambda x: (), "takes 2 arguments, 0 were given"),
        (lambda x: (x, 3), "must be numpy.int32, not builtins.int"),
        (lambda x: (x, np.int64(3)), "must be numpy.int32, not numpy.int64"),
        (lambda x: (x.astype(np.float64), np.int32(3)), "must be of float32, not float64"),
        (lambda x: (x[::2], np.int32(3)), "not C-contiguous"),
        (lambda x: (4, np.int32(3)), "must be an array"),
    ],
)
def test_arguments_are_checked(args, problem):
    source = f"{HEADER}\n__global__ void k(float *out, int n) {{ out[0] = static_cast<float>(n); }}"
    kernel = HostModule("test", source, ["k"]).get_function("k")
    out = np.zeros(4, np.float32)
    kernel((1,), (1,), (out, np.int32(3)))
    assert out[0] == 3
    with pytest.raises(TypeError, match=problem):
        kernel((1,), (1,), args(out))
    for grid, block in (((1,), (1025,)), ((0,), (32,)), ((1, 65536), (32,)), ((1,), (1, 1, 65))):
        with pytest.raises(LaunchError, match="no GPU runs"):
            kernel(grid, block, (out, np.int32(3)))
