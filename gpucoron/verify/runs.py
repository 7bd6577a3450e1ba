"""Run each pipeline in its own process, and record time and memory."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpucoron.backend.device import peak_memory
from gpucoron.errors import GpucoronError, InputError

log = logging.getLogger("gpucoron")


class PeerError(GpucoronError):
    """The jwst package is not installed, or failed."""

    exit_code = 6


def require_jwst() -> None:
    """Raise PeerError unless the jwst package, which is not imported, is installed."""
    if find_spec("jwst") is None:
        raise PeerError(
            "the jwst package is not installed, so there is nothing to compare with; "
            "pip install 'gpucoron[jwst]'"
        )


def run_module(module: str, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run ``python -m gpucoron.verify.<module>`` on a job, which its `run` gets; return its record.

    Job, record and log are written to the folder; ``process_s`` in the record are the wall seconds
    of the whole process.

    Raises
    ------
    PeerError
        jwst failed.
    GpucoronError
        gpucoron failed; its `exit_code` is that of the run.
    """
    name = module.removeprefix("run_")
    paths = {kind: folder / f"{name}.{kind}" for kind in ("job.json", "record.json", "log")}
    paths["record.json"].unlink(missing_ok=True)
    paths["job.json"].write_text(json.dumps(dict(job), indent=1))
    start = time.perf_counter()
    with open(paths["log"], "w", encoding="utf-8") as output:
        command = [
            sys.executable,
            "-P",
            "-m",
            f"gpucoron.verify.{module}",
            str(paths["job.json"]),
            str(paths["record.json"]),
        ]
        code = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, check=False, stdin=subprocess.DEVNULL
        ).returncode
    process_s = time.perf_counter() - start
    record = {}
    if paths["record.json"].is_file():
        record = json.loads(paths["record.json"].read_text())
    if code or "error" in record:
        _fail(name, code, record, paths["log"])
    return {**record, "process_s": process_s}


def _fail(name: str, code: int, record: dict, log_file: Path) -> None:
    reason = record.get("error", f"its process ended with status {code}")
    if name == "gpucoron":
        error = InputError(reason)
        error.exit_code = record.get("exit_code", 1)
        raise error
    raise PeerError(f"{name} failed: {reason} (log: {log_file})")


def recorded(run: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
    """Run the job that `run_module` gave, and write the record; return the exit status."""
    job_file, record_file = (Path(p) for p in sys.argv[1:3])
    job = json.loads(job_file.read_text())
    try:
        record = run(job)
    except Exception as problem:  # any error becomes one line for the caller
        log.exception("failed")
        text = " ".join(str(problem).split()) or type(problem).__name__
        if not isinstance(problem, GpucoronError):
            text = f"{type(problem).__name__}: {text}"
        record = {"error": text, "exit_code": getattr(problem, "exit_code", 1)}
    record["peak_mib"] = peak_memory() / 2**20
    record_file.write_text(json.dumps(record, indent=1))
    return 1 if "error" in record else 0
