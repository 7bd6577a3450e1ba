"""One part of what on_gpu.sh does on a machine with a GPU; its results join the others in a file.

    python bench/bench_gpu.py PART [--out FILE] [--work DIR] [--limit SECONDS]

on_gpu.sh says what the parts are; besides them: simulate (the sets, on the CPU), name (of the file
that --out should be, in a folder), table (what the file holds, in short), prove (from a file
whose parts are all well write gpucoron/backend/gpu_proof.json, with which --device auto takes a
GPU), withdraw (remove that file).
"""

import argparse
import datetime
import fcntl
import functools
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import gpu_proof  # noqa: E402
import gpu_table  # noqa: E402
from common import where  # noqa: E402

PARTS = (
    "libraries",
    "compile",
    "cases",
    "tiny",
    "start",
    "rates",
    "kernels",
    "compare",
    "large",
    "canonical",
    "tests",
    "memcheck",
    "sanitize",
)
LIBRARIES = (
    "cupy",
    "numpy",
    "scipy",
    "numba",
    "llvmlite",
    "astropy",
    "asdf",
    "gwcs",
    "stdatamodels",
    "rich",
    "pytest",
    "pytest-xdist",
    "pytest-timeout",
    "hypothesis",
    "torch",
)
MEMCHECK = ("median", "klip", "registration", "drizzle")  # files of kernels, for a first look
TINY_TESTS = ["tests/core/test_stack.py"]


def run(part, options):
    """Do one part; its results. What takes long is kept while it goes on."""
    if part == "libraries":
        return libraries()
    if part in ("compile", "cases", "tests", "memcheck", "sanitize"):
        return checks(part, options)
    if part in ("tiny", "compare"):
        import gpu_compare
        from gpu_runs import found

        return gpu_compare.compare(*found(options.work, "tiny" if part == "tiny" else "canonical"))
    if part == "start":
        import gpu_start

        return gpu_start.in_processes()
    if part == "rates":
        from gpu_rates import rates

        return rates(options.tiny)
    if part == "kernels":
        import gpu_cases
        from gpu_kernels import kernels

        shapes = gpu_cases.TINY if options.tiny else gpu_cases.REAL
        done = []

        def found(row):
            done.append(row)
            say(gpu_table.kernel_line(row))
            join(part, {"rows": done, "unfinished": True}, options.out)

        rows = kernels(read(options.out).get("rates", {}), shapes, found)
        wrong = [row["case"] for row in rows if "error" in row or row.get("difference", 0) > 1e-6]
        return {"rows": rows, "wrong": wrong, "ok": not wrong}
    import gpu_runs

    jwst = gpu_runs.jwst(ROOT / "bench" / "results")
    results = gpu_runs.runs(
        options.work, part, lambda so_far: join(part, {**so_far, "jwst": jwst}, options.out)
    )
    return {**results, "jwst": jwst}


def checks(part, options):
    """What gpu_checks.py does."""
    import gpu_checks

    files = ["drizzle_weights"] if options.tiny else options.files
    workers = 2 if options.tiny else options.workers
    if part == "compile":
        return gpu_checks.compiled(1 if options.tiny else workers)
    if part == "cases":
        return gpu_checks.cases(
            options.expected, options.work / "cases", options.limit, workers, files
        )
    if part == "tests":
        return gpu_checks.tests(
            options.limit,
            workers,
            TINY_TESTS if options.tiny else gpu_checks.TEST_FILES,
            options.out.with_name(f"{options.out.stem}-tests.log"),
        )
    if part == "memcheck":
        return gpu_checks.sanitize(options.limit, workers, files or MEMCHECK, ("memcheck",))
    return gpu_checks.sanitize(options.limit, workers, files)


def libraries():
    """Versions of what is used, and what cannot be imported; numba compiles a loop."""
    import importlib.metadata

    versions, problems = {}, {}
    distributions = importlib.metadata.packages_distributions()
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(
                next(iter(distributions.get(name, ())), name)
            )
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    try:
        import numba

        if numba.njit(lambda a: a + 1)(1) != 2:
            problems["numba"] = "compiles wrongly"
    except Exception as problem:  # parts that need no numba go on
        problems["numba"] = f"{type(problem).__name__}: {problem}"[:500]
    return {"versions": versions, "problems": problems, "ok": not problems}


def join(part, results, out):
    """Put a part's results into the file, at once and whole; another process may do the same."""
    here, beside = _where(), out.with_name(f".{out.name}.part")
    with open(beside, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        stored = read(out)
        stored.setdefault("where", here)
        stored[part] = {
            **results,
            "commit": here["commit"],
            "code": _code(),
            "date": str(datetime.date.today()),
        }
        own = out.with_name(f".{out.name}.{os.getpid()}")
        own.write_text(json.dumps(stored, indent=1, default=float) + "\n")
        own.replace(out)


@functools.cache
def _where():
    """Asked once: it starts nvidia-smi and git."""
    return where()


@functools.cache
def _code():
    """Of which code the results are."""
    return gpu_proof.checksum()


def read(out):
    return json.loads(out.read_text()) if out and out.is_file() else {}


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def file_name():
    """Name of the result: date and device."""
    from gpucoron.backend.device import find_gpus

    device = re.sub(r"[^a-z0-9]+", "-", find_gpus()[0][0].name.lower()).strip("-")
    return f"{datetime.date.today()}-gpu-{device}.json"


def make_parser():
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=(*PARTS, "simulate", "name", "table", "prove", "withdraw"))
    parser.add_argument("--out", type=Path, default=Path("bench-gpu.json"))
    parser.add_argument("--work", type=Path, default=Path("bench-gpu-work"))
    parser.add_argument("--limit", type=float, default=120.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument(
        "--expected",
        type=Path,
        default=ROOT / ".expected",
        help="what the emulated device gave, for cases",
    )
    parser.add_argument(
        "--files",
        nargs="+",
        metavar="FILE",
        help="of kernels, for cases, memcheck and sanitize; default: all, for memcheck some",
    )
    parser.add_argument("--sets", nargs="+", default=["canonical", "large"], help="to simulate")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="tiny sizes, to try this program",
        default=bool(os.environ.get("GPUCORON_BENCH_TINY")),
    )
    return parser


def main(arguments=None):
    """Do one part; the exit code is 1 where something is wrong, 3 without a GPU."""
    options = make_parser().parse_args(arguments)
    if options.part == "withdraw":
        gpu_proof.PROOF.unlink(missing_ok=True)
        return 0
    if options.part == "prove":
        problem = gpu_proof.prove(options.out)
        say(f"no proof: {problem}" if problem else f"{gpu_proof.PROOF} is written")
        return 1 if problem else 0
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part == "simulate":
        import gpu_runs

        def simulate(name):
            seconds = gpu_runs.simulate(
                options.work, name, gpu_runs.SETS["tiny"] if options.tiny else None
            )
            say(f"simulate {name}: {seconds or 0:.0f} s")

        with ThreadPoolExecutor() as pool:
            list(pool.map(simulate, dict.fromkeys(options.sets)))
        return 0
    if options.part == "table":
        say(gpu_table.table(read(options.out)))
        return 0
    from gpucoron.backend.device import find_gpus

    gpus, problem = find_gpus()
    if not gpus:
        sys.stderr.write(f"no GPU: {problem}\n")
        return 3
    if options.part == "name":
        say(file_name())
        return 0
    start = time.perf_counter()
    try:
        results = run(options.part, options)
    except Exception as problem:  # is a result, too; the next part goes on
        import traceback

        results = {
            "error": f"{type(problem).__name__}: {problem}"[:1000],
            "ok": False,
            "traceback": traceback.format_exc()[-3000:],
        }
        say(results["traceback"])
    results["part_s"] = time.perf_counter() - start
    if options.tiny:
        results["tiny"] = True
    join(options.part, results, options.out)
    say(
        f"== {options.part}: {results['part_s']:.0f} s, "
        f"{'ok' if results.get('ok', True) else 'NOT OK'}"
    )
    return 0 if results.get("ok", True) else 1


if __name__ == "__main__":
    sys.exit(main())
