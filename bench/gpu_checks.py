"""The tests on the GPU, the compiled kernels, and compute-sanitizer over small calls of them all.

As a program it runs the cases of one .cu file: python bench/gpu_checks.py FILE
"""

import concurrent.futures
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
def tests(timeout_s=200, workers=8, extra=()):
    """Run ``pytest -m gpu``; its summary, and all that it said of failures."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider",
               "-n", str(workers), "--durations=8", "--tb=short", *extra]
    start = time.perf_counter()
    code, text = call(command, timeout_s)
    counts = {word: int(n) for n, word in
              re.findall(r"(\d+) (passed|failed|errors?|skipped)", text.strip().split("\n")[-1])}
    return {"exit": code, "seconds": time.perf_counter() - start, **counts, "end": text[-8000:],
            "ok": code == 0 and counts.get("passed", 0) > 0}


def call(command, timeout_s):
    """Exit code (None: it took too long) and output of a process; all it started ends with it."""
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True, errors="replace", start_new_session=True)
    try:
        text, _ = child.communicate(timeout=timeout_s)
        return child.returncode, text
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, 9)
        return None, child.communicate()[0] + f"\nstopped after {timeout_s:.0f} s"


# ---------------------------------------------------------------- compiled kernels
def compile_one(file, name):
    """Compile one instantiation for the device here: seconds, and what it takes."""
    from gpucoron import cuda

    start = time.perf_counter()
    function = cuda.kernel(file, name)._module.get_function(name)
    facts = getattr(function, "attributes", {})
    return {"kernel": f"{file}.cu, {name}", "seconds": time.perf_counter() - start,
            "registers": facts.get("num_regs"), "local_bytes": facts.get("local_size_bytes"),
            "shared_bytes": facts.get("shared_size_bytes")}


def compiled(workers=12):
    """Compile everything in several processes, which fills CuPy's cache for all that follows."""
    from gpucoron import cuda

    every = [(path.stem, name) for path in cuda.kernel_files()
             for name in cuda.read_kernels(path.stem).names]
    start = time.perf_counter()
    if workers > 1:
        with concurrent.futures.ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn")) as pool:
            rows = list(pool.map(compile_one, *zip(*every, strict=True)))
    else:
        rows = [compile_one(*one) for one in every]
    spilling = [row["kernel"] for row in rows if row["local_bytes"]]
    return {"kernels": rows, "seconds": time.perf_counter() - start,
            "in_turn_s": sum(row["seconds"] for row in rows), "with_local_memory": spilling,
            "ok": True}


# ---------------------------------------------------------------- compute-sanitizer
def sanitizer():
    """Path of compute-sanitizer; None where it is not installed."""
    return shutil.which("compute-sanitizer", path=os.pathsep.join(
        [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))


def sanitize(timeout_s=90, workers=10, files=None):
    """Run every tool over the cases of every file, several at a time."""
    from gpucoron import cuda

    tool = sanitizer()
    if tool is None:
        return {"skipped": "compute-sanitizer is not installed", "ok": True}
    files = files or [path.stem for path in cuda.kernel_files()]
    start = time.perf_counter()
    jobs = [(which, file) for which in TOOLS for file in files]

    def work(job):
        left = timeout_s - (time.perf_counter() - start)
        return sanitize_one(tool, *job, left) if left > 5 else {
            "tool": job[0], "file": job[1], "exit": None, "errors": None, "ours": []}

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        rows = list(pool.map(work, jobs))
    return {"rows": rows, "seconds": time.perf_counter() - start,
            "unfinished": sum(row["exit"] is None for row in rows),
            "ok": all(row["exit"] in (0, None) and not row["ours"] for row in rows)}


def sanitize_one(tool, which, file, timeout_s):
    """Run one tool over the cases of one file; what is found in libraries' kernels is not ours."""
    from gpucoron import cuda

    more = {"racecheck": ["--racecheck-report", "all"], "memcheck": ["--report-api-errors", "no"]}
    command = [tool, "--tool", which, "--print-limit", "20", *more.get(which, []),
               sys.executable, str(Path(__file__).resolve()), file]
    start = time.perf_counter()
    code, text = call(command, timeout_s)
    summary = _ERRORS.findall(text)
    said = "\n".join([line for line in text.splitlines() if _SAID.match(line)][:40])
    names = {name.partition("<")[0] for path in cuda.kernel_files()
             for name in cuda.read_kernels(path.stem).names}
    return {"tool": which, "file": file, "exit": code,
            "errors": int(summary[-1]) if summary else None,
            "ours": sorted(name for name in names if name in said),
            "seconds": time.perf_counter() - start, "said": said,
            **({} if code == 0 else {"end": text[-1500:]})}


def run_cases(file, device):
    """Call the cases of a file on a device; each array an allocation of its own, so that a tool
    sees where it ends."""
    from tests.kernel_cases import CASES

    for case in CASES[file]:
        start = time.perf_counter()
        device.get(case(device))
        sys.stdout.write(f"{file}: {case.__name__} {time.perf_counter() - start:.1f} s\n")
        sys.stdout.flush()


def main():
    """Run the cases of the files named, on the real device."""
    sys.path.insert(0, str(ROOT))
    from tests import device_fixture

    with device_fixture.make("cuda") as device:
        device.cupy.cuda.set_allocator(None)
        for file in sys.argv[1:]:
            run_cases(file, device)


if __name__ == "__main__":
    main()
