"""The fixed cost of a run: start-up, imports, a small run, and the first run after installation.

    python bench/bench_startup.py [--asn FILE] [--repeat 5] [--threads 1] [--first] [--out FILE]

Each thing runs in a process of its own, as often as --repeat says, in turns; CPU seconds (user and
system, by the kernel's account of the child) and wall seconds, medians and minima, as JSON. Without
--asn a small association is simulated. --first adds a run with an empty numba cache, and how long
each compiled function took.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = """
import sys
from gpucoron.cli.main import main
code = main(sys.argv[2:])
open(sys.argv[1], "w").write("\\n".join(sys.modules))
sys.exit(code)
"""
IMPORT = """
import importlib, sys
for name in open(sys.argv[1]).read().split("\\n"):
    try:
        importlib.import_module(name)
    except Exception:
        pass
"""
COMPILE = """
import json, sys, time
from numba.core import event
class Listener(event.Listener):
    stack, found = [], []
    def on_start(self, e):
        self.stack.append([time.process_time(), 0.0])
    def on_end(self, e):
        start, inner = self.stack.pop()
        total = time.process_time() - start
        if self.stack:
            self.stack[-1][1] += total
        function = e.data["dispatcher"].py_func
        self.found.append((total - inner, f"{function.__module__}.{function.__qualname__}"))
listener = Listener()
event.register("numba:compile", listener)
from gpucoron.cli.main import main
from gpucoron.backend.compiling import allow_second_compiler
allow_second_compiler()  # as the command does; what the other process compiles is not counted
code = main(sys.argv[2:])
totals = {}
for seconds, name in listener.found:
    count, before = totals.get(name, (0, 0.0))
    totals[name] = (count + 1, before + seconds)
json.dump(totals, open(sys.argv[1], "w"))
sys.exit(code)
"""


def measure(command, environment):
    """CPU and wall seconds of a child process."""
    start = time.perf_counter()
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    message = child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command[:4])} ... failed: {message.decode()[-500:]}")
    return used.ru_utime + used.ru_stime, wall


def fixed_environment(threads, cache):
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    kept = {
        k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"
    }  # bytecode is cached, as usual
    return {**kept, **{name: str(threads) for name in names}, "NUMBA_CACHE_DIR": str(cache)}


def simulated(folder, environment):
    """Two science exposures of 3 integrations, three references of 2, 128 x 128."""
    code = (
        "import sys; from gpucoron.simulate import simulate;"
        "print(simulate(sys.argv[1], shape=(128, 128), n_science=2, n_integrations=3,"
        "n_references=3, n_reference_integrations=2).asn)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, text=True, capture_output=True
    )
    if done.returncode:
        sys.exit(f"simulating failed: {done.stderr[-500:]}")
    return done.stdout.strip().split("\n")[-1]


def summary(times):
    cpu, wall = zip(*times, strict=True)
    return {
        "cpu_s": {"median": statistics.median(cpu), "min": min(cpu)},
        "wall_s": {"median": statistics.median(wall), "min": min(wall)},
    }


def first_run(run, work, environment, warm):
    """A run with an empty numba cache, beside `warm` ones, and what was compiled."""
    environment = {**environment, "NUMBA_CACHE_DIR": str(work / "empty")}
    cpu, wall = measure(
        [sys.executable, "-c", COMPILE, str(work / "compiled.json"), *run], environment
    )
    compiled = json.loads((work / "compiled.json").read_text())
    functions = sorted(
        ((seconds, name, count) for name, (count, seconds) in compiled.items()), reverse=True
    )
    return {
        "cpu_s": cpu,
        "wall_s": wall,
        "longer_cpu_s": cpu - warm["cpu_s"]["median"],
        "longer_wall_s": wall - warm["wall_s"]["median"],
        "compiling_cpu_s": sum(seconds for seconds, _, _ in functions),
        "functions": [
            {"function": name, "versions": count, "cpu_s": round(seconds, 3)}
            for seconds, name, count in functions
            if name.startswith("gpucoron.")
        ],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--asn")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args()
    program = [
        sys.executable,
        "-c",
        "import sys; from gpucoron.cli.main import main; sys.exit(main())",
    ]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        environment = fixed_environment(options.threads, work / "cache")
        asn = options.asn or simulated(work / "set", environment)
        run = [asn, "--output-dir", str(work / "out"), "-q"]
        names = work / "modules.txt"
        measure([sys.executable, "-c", MODULES, str(names), *run], environment)  # fills the caches
        things = {
            "python alone": [sys.executable, "-c", "pass"],
            "import gpucoron": [sys.executable, "-c", "import gpucoron"],
            "gpucoron --help": [*program, "--help"],
            "import numpy and numba": [sys.executable, "-c", "import numpy, numba"],
            "imports of a run": [sys.executable, "-c", IMPORT, str(names)],
            "small run": [*program, *run],
        }
        times = {name: [] for name in things}
        for _ in range(options.repeat):
            for name, command in things.items():
                times[name].append(measure(command, environment))
        results = {name: summary(found) for name, found in times.items()}
        if options.first:
            results["first run"] = first_run(run, work, environment, results["small run"])
    report = {
        "what": "fixed cost of a run",
        "threads": options.threads,
        "repeat": options.repeat,
        "asn": Path(asn).name if options.asn else "simulated, 128 x 128, 2 x 3 and 3 x 2",
        "date": time.strftime("%Y-%m-%d"),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip(),
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.processor(),
            "system": platform.platform(),
            "load": os.getloadavg(),
        },
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("numpy", "scipy", "numba", "astropy")
        },
        "results": results,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        Path(options.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
