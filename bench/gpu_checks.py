"""The tests on the GPU, the compiled kernels, small calls of them all, and compute-sanitizer.

As a program it calls the cases of .cu files, and can keep what they give:

    python bench/gpu_checks.py [--emulated] [--keep FOLDER] [FILE...]
"""

import argparse
import concurrent.futures
import importlib.util
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_ERRORS = re.compile(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+)")
_SAID = re.compile(r"^=========\s+(Invalid|Uninit|Barrier|Error|Warning|Potential|Race|at |in )")


# ---------------------------------------------------------------- pytest
#: The files that hold tests on a GPU; tests/bench/test_bench_gpu.py sees that none is missing.
TEST_FILES = (
    "tests/pipeline/test_pipeline_gpu.py",
    "tests/backend/test_place.py",
    "tests/backend/test_cuda.py",
    "tests/docs/test_docs_gpu.py",
    "tests/emulation/test_emulated_pool.py",
    "tests/pipeline/test_resume.py",
    "tests/core/test_stack.py",
    *(
        f"tests/ops/test_{name}.py"
        for name in (
            "bad_pixels",
            "drizzle",
            "drizzle_arguments",
            "drizzle_cuda",
            "eigen",
            "eigen_decomposition",
            "flagged_pixels",
            "fourier_shift",
            "klip_zones",
            "kriging",
            "leave_one_out",
            "median",
            "outliers",
            "registration",
            "subtracted",
        )
    ),
    *(
        f"tests/steps/test_{name}.py"
        for name in (
            "align_refs",
            "bad_pixels",
            "field",
            "klip",
            "lone_hits",
            "outlier_detection",
            "psf_noise",
            "reference_ranking",
            "resample",
            "resample_errors",
            "roll_subtraction",
            "speckle_correlation",
            "visit_outliers",
        )
    ),
)
_RESULT = re.compile(r"\[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (\S.*)")


def tests(timeout_s=200, workers=8, extra=TEST_FILES, log=None):
    """Run the GPU tests; how many passed, the names of the others, and what was said of them.

    A run that is stopped at its limit still names what had failed until then.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-v",
        "-p",
        "no:cacheprovider",
        "--color=no",
        "-n",
        str(workers),
        "--durations=8",
        "--tb=short",
        *extra,
    ]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", "120"]
    start = time.perf_counter()
    code, text = call(command, timeout_s)
    if log is not None:
        log.write_text(text)
    results = {}
    for line in text.splitlines():
        if found := _RESULT.search(line):  # with xdist: [gw1] [ 98%] PASSED tests/x.py::name
            results[found[2].strip()] = found[1]
    words = list(results.values())
    counts = {word.lower(): words.count(word) for word in dict.fromkeys(words)}
    failed = sorted(name for name, word in results.items() if word in ("FAILED", "ERROR"))
    return {
        "exit": code,
        "seconds": time.perf_counter() - start,
        **counts,
        "names": failed,
        "end": text[-8000:],
        "ok": code == 0 and counts.get("passed", 0) > 0,
    }


def call(command, timeout_s, **environment):
    """Exit code (None: it took too long) and output of a process; all it started ends with it."""
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={**os.environ, **environment},
    )
    try:
        text, _ = child.communicate(timeout=timeout_s)
        return child.returncode, text
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, 9)
        return None, child.communicate()[0] + f"\nstopped after {timeout_s:.0f} s"


# ---------------------------------------------------------------- compiled kernels
def compile_one(file, name):
    """Compile one instantiation for the device here: seconds, and what it takes."""
    from gpucoron.backend import cuda

    start, label = time.perf_counter(), f"{file}.cu, {name}"
    try:
        function = cuda.kernel(file, name)._function()
        facts = getattr(function, "attributes", {})
    except Exception as problem:  # the others may compile
        return {
            "kernel": label,
            "seconds": time.perf_counter() - start,
            "local_bytes": None,
            "error": f"{type(problem).__name__}: {problem}"[:3000],
        }
    return {
        "kernel": label,
        "seconds": time.perf_counter() - start,
        "registers": facts.get("num_regs"),
        "local_bytes": facts.get("local_size_bytes"),
        "shared_bytes": facts.get("shared_size_bytes"),
    }


def compiled(workers=12):
    """Compile everything in several processes, which fills CuPy's cache for all that follows."""
    from gpucoron.backend import cuda

    every = cuda.all_kernels()
    start = time.perf_counter()
    if workers > 1:
        with concurrent.futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn")
        ) as pool:
            rows = list(pool.map(compile_one, *zip(*every, strict=True)))
    else:
        rows = [compile_one(*one) for one in every]
    spilling = [row["kernel"] for row in rows if row["local_bytes"]]
    return {
        "kernels": rows,
        "seconds": time.perf_counter() - start,
        "in_turn_s": sum(row["seconds"] for row in rows),
        "with_local_memory": spilling,
        "ok": not any("error" in row for row in rows),
    }


# ---------------------------------------------------------------- small calls
def cases(expected, work, timeout_s=60, workers=9, files=None):
    """Call the cases of every file, each in a process of its own, and compare what they give.

    Launches are waited for one by one, so that an error names its kernel. Where `expected` has no
    results of the emulated device, calls are made all the same.
    """
    from gpucoron.backend import cuda

    files = files or [path.stem for path in cuda.kernel_files()]
    start = time.perf_counter()

    def work_on(file):
        left = max(1.0, timeout_s - (time.perf_counter() - start))
        command = [sys.executable, str(Path(__file__).resolve()), "--keep", str(work), file]
        code, text = call(command, left, CUDA_LAUNCH_BLOCKING="1")
        row = {"file": file, "exit": code}
        if code != 0:
            return {**row, "ok": False, "end": text[-3000:]}
        kept, right = work / f"{file}.npz", Path(expected) / f"{file}.npz"
        if not right.is_file():
            return {**row, "ok": True, "compared": 0}
        return {**row, **compare_kept(kept, right)}

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        rows = list(pool.map(work_on, files))
    return {
        "rows": rows,
        "seconds": time.perf_counter() - start,
        "ok": all(row["ok"] for row in rows),
    }


KEPT_LIMITS = {8: 1e-9, 4: 1e-6}  # rms of a difference over the rms, by bytes of an element


def compare_kept(got, right):
    """Compare two files of arrays: the largest rms of a difference over the rms, by case."""
    import numpy as np
    from gpu_kernels import relative

    out, wrong = {}, []
    with np.load(got) as ours, np.load(right) as theirs:
        if sorted(ours.files) != sorted(theirs.files):
            return {"ok": False, "compared": 0, "wrong": ["the cases are others than those kept"]}
        for name in theirs.files:
            a, b = ours[name], theirs[name]
            if a.shape != b.shape or a.dtype != b.dtype:
                wrong.append(f"{name}: {a.dtype}{a.shape}, expected {b.dtype}{b.shape}")
                continue
            exact = b.dtype.kind not in "fc"
            value = float(np.count_nonzero(a != b)) if exact else relative(a, b)
            case = name.rpartition(" ")[0]
            out[case] = max(out.get(case, 0.0), value)
            if not value <= (0 if exact else KEPT_LIMITS[b.dtype.itemsize]):
                wrong.append(f"{name}: {value:.2e}")
        return {"ok": not wrong, "compared": len(theirs.files), "worst": out, "wrong": wrong}


# ---------------------------------------------------------------- compute-sanitizer
def sanitizer():
    """Path of compute-sanitizer; None where it is not installed."""
    return shutil.which(
        "compute-sanitizer",
        path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"]),
    )


def sanitize(timeout_s=90, workers=12, files=None, tools=TOOLS):
    """Run every tool over the cases of every file, several at a time.

    A run that does not end within the limit is not well: it shows nothing.
    """
    from gpucoron.backend import cuda

    tool = sanitizer()
    if tool is None:
        return {"skipped": "compute-sanitizer is not installed", "ok": True}
    files = files or [path.stem for path in cuda.kernel_files()]
    start = time.perf_counter()
    jobs = [(which, file) for which in tools for file in files]

    def work(job):
        left = timeout_s - (time.perf_counter() - start)
        return (
            sanitize_one(tool, *job, left)
            if left > 5
            else {"tool": job[0], "file": job[1], "exit": None, "errors": None, "ours": []}
        )

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        rows = list(pool.map(work, jobs))
    return {
        "rows": rows,
        "seconds": time.perf_counter() - start,
        "unfinished": sum(row["exit"] is None for row in rows),
        "ok": all(row["exit"] == 0 and not row["ours"] for row in rows),
    }


def sanitize_one(tool, which, file, timeout_s):
    """Run one tool over the cases of one file; what is found in libraries' kernels is not ours."""
    from gpucoron.backend import cuda

    more = {"racecheck": ["--racecheck-report", "all"], "memcheck": ["--report-api-errors", "no"]}
    command = [
        tool,
        "--tool",
        which,
        "--print-limit",
        "20",
        *more.get(which, []),
        sys.executable,
        str(Path(__file__).resolve()),
        file,
    ]
    start = time.perf_counter()
    code, text = call(command, timeout_s)
    summary = _ERRORS.findall(text)
    said = "\n".join([line for line in text.splitlines() if _SAID.match(line)][:40])
    names = {name.partition("<")[0] for _, name in cuda.all_kernels()}
    return {
        "tool": which,
        "file": file,
        "exit": code,
        "errors": int(summary[-1]) if summary else None,
        "ours": sorted(name for name in names if name in said),
        "seconds": time.perf_counter() - start,
        "said": said,
        **({} if code == 0 else {"end": text[-1500:]}),
    }


def run_cases(file, device, keep=None):
    """Call the cases of a file on a device, and keep what they give if there is a folder for it."""
    import numpy as np

    from tests.helpers.kernel_cases import CASES

    kept = {}
    for case in CASES[file]:
        start = time.perf_counter()
        values = device.get(case(device))
        sys.stdout.write(f"{file}: {case.__name__} {time.perf_counter() - start:.1f} s\n")
        sys.stdout.flush()
        kept.update({f"{case.__name__} {k:03d}": np.asarray(v) for k, v in enumerate(flat(values))})
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(keep / f"{file}.npz", **kept)


def flat(values):
    """Yield all arrays in tuples and lists; None is passed over."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from flat(value)
        elif value is not None:
            yield value


def main(arguments=None):
    """Call the cases of the files named, or of all."""
    sys.path.insert(0, str(ROOT))
    from gpucoron.backend import cuda
    from tests.helpers import device_fixture

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--emulated", action="store_true", help="on the emulated device")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for FILE.npz")
    options = parser.parse_args(arguments)
    with device_fixture.make("host-forward" if options.emulated else "cuda") as device:
        if not options.emulated:  # each array an allocation of its own: tools see where it ends
            device.cupy.cuda.set_allocator(None)
        for file in options.files or [path.stem for path in cuda.kernel_files()]:
            run_cases(file, device, options.keep)


if __name__ == "__main__":
    main()
