"""What all benchmarks share: where they ran, repeated timings, whole processes, JSON."""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "scipy", "numba", "astropy", "jwst", "drizzle")


def arguments(description):
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    return parser


def number_range(text):
    """Read "A-B" or "A", both ends included."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def limit_threads(n):
    """Fix the size of every thread pool; before numpy is imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(n)


def gpu():
    """Name, driver and versions of the GPU that would be used; None without one."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from gpucoron.backend.device import find_gpus

    found, _ = find_gpus()
    if not found:
        return None
    import cupy

    facts = {
        "name": found[0].name,
        "description": found[0].description,
        "count": len(found),
        "cupy": getattr(cupy, "__version__", None),
    }
    for name in ("driver", "runtime"):  # 13000 is CUDA 13.0; of the driver: what it supports
        version = getattr(cupy.cuda.runtime, f"{name}GetVersion", None)
        facts[f"cuda_{name}"] = version() if version else None
    query = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.max.sm,clocks.max.memory,power.limit",
        "--format=csv,noheader",
    ]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        facts["driver, clocks, power"] = answer.splitlines()[found[0].index].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        facts["driver, clocks, power"] = None
    return facts


def where():
    """The machine, the commit and the versions.

    The commit is what GPUCORON_COMMIT says, if it does, where git does not know it.
    """
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    ).stdout.strip()
    commit = os.environ.get("GPUCORON_COMMIT") or commit
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "commit": commit,
        "device": f"{model}, {os.cpu_count()} cores",
        "gpu": gpu(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        **versions,
    }


def timed(function, repeats):
    """Median and minimum of wall seconds, and the processor seconds of the median run."""
    runs = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        runs.append((time.perf_counter() - wall, time.process_time() - cpu))
    runs.sort()
    return {
        "median_s": statistics.median(r[0] for r in runs),
        "min_s": runs[0][0],
        "cpu_s": runs[len(runs) // 2][1],
    }


def process(command, repeats=1, env=None, output=None):
    """Run a whole process: wall and processor seconds, and its peak memory.

    The folder `output` is removed before every run: writing into new files is what is timed. Python
    keeps compiled modules, as pip does when it installs a package.
    """
    env = {**os.environ, **(env or {})}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    runs = []
    for _ in range(repeats):
        if output is not None:
            shutil.rmtree(output, ignore_errors=True)
        start = time.perf_counter()
        child = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=env,
        )
        error = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        if status:
            raise SystemExit(f"{' '.join(map(str, command))} failed:\n{error.decode()[-2000:]}")
        runs.append((wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024))
    runs.sort()
    return {
        "median_s": statistics.median(r[0] for r in runs),
        "min_s": runs[0][0],
        "cpu_s": runs[len(runs) // 2][1],
        "peak_mib": max(r[2] for r in runs),
    }


def command():
    """The command that was run, without folders and the options that say where files go."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        name, given, _ = word.partition("=")
        if name not in ("--out", "--work"):
            kept.append(Path(word).name if Path(word).is_absolute() else word)
        elif not given:
            next(words, None)
    return shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *kept])


def finish(results, out):
    """Print the results as JSON, with the command, and write them where asked."""
    results = {"command": command(), "where": where(), **results}
    text = json.dumps(results, indent=1, default=float)
    sys.stdout.write(text + "\n")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
