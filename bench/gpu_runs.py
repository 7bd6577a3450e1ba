"""Whole runs of simulated sets: on the GPU and on the CPU beside it, and where their time goes.

The canonical set: NIRCam, 320 x 320, 2 x 10 integrations, 9 x 4 references. The large one: 2 x 60
and 9 x 20, of four wavefronts, 21,600 pairs. psfalign is not written.
"""

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

from common import process
from gpu_timing import record, synchronize, totals, traced

import gpucoron

SETS = {
    "tiny": [
        "--shape",
        "36x40",
        "--integrations",
        "3",
        "--references",
        "2",
        "--reference-integrations",
        "2",
    ],
    "canonical": [],
    "large": ["--integrations", "60", "--reference-integrations", "20", "--optical-states", "4"],
}
FAILED = "simulate-failed"
TINY = bool(os.environ.get("GPUCORON_BENCH_TINY"))
PATIENCE = float(os.environ.get("PATIENCE", "1"))
SAVE = ("crfints", "psfstack", "psfsub", "i2d")
GOAL = (
    "registration: preparing",
    "registration: uncertainties",
    "registration: fits",
    "shift",
    "klip",
)


# ---------------------------------------------------------------- sets
def simulate(work, name, options=None):
    """Simulate a set in a process of its own, unless it is there; its seconds, or None."""
    folder = work / name
    if list(folder.glob("*_asn.json")):
        return None
    part = folder.with_name(f"{name}-part")
    shutil.rmtree(part, ignore_errors=True)
    start = time.perf_counter()
    options = SETS[name] if options is None else options
    done = subprocess.run([sys.executable, "-m", "gpucoron", "simulate", str(part), "-q", *options])
    if done.returncode:
        (work / FAILED).touch()
        raise SystemExit(f"simulate {name} failed")
    part.rename(folder)
    return time.perf_counter() - start


def found(work, name, wait_s=120.0 * PATIENCE):
    """Association and psfmask of a set, which may be in the making."""
    until = time.monotonic() + wait_s
    while not (asn := sorted((work / name).glob("*_asn.json"))):
        if time.monotonic() > until or (work / FAILED).exists():
            raise FileNotFoundError(f"there is no set in {work / name}; simulate it first")
        time.sleep(0.2)
    return asn[0], work / name / "psfmask.fits"


# ---------------------------------------------------------------- where the time goes
class Watch:
    """Seconds and bytes of what a run does beside computing, each in the thread that does it.

    Attributes
    ----------
    seconds, bytes : dict of str to number
        "read": files, without what follows. "upload", "download": until complete, which for
        downloads includes waiting for what is computed. "write": files, without downloads.
    """

    def __init__(self):
        self.seconds = dict.fromkeys(("read", "upload", "download", "write"), 0.0)
        self.bytes = dict.fromkeys(("upload", "download"), 0)
        self._own = threading.local()

    def __enter__(self):
        from gpucoron.backend.prefetch import Background
        from gpucoron.backend.transfer import CudaBackend
        from gpucoron.io.exposures import Exposure

        self._patches = contextlib.ExitStack()
        load, upload, later, submit = (
            Exposure.load,
            CudaBackend.upload,
            CudaBackend.download_later,
            Background.submit,
        )

        def watched_submit(background, work, *args, **kwargs):
            def watched_work(*own, **named):
                self._own.download = 0.0
                try:
                    return self._add("write", work, *own, **named)
                finally:
                    self.seconds["write"] -= self._own.download

            return submit(background, watched_work, *args, **kwargs)

        def watched_later(*args, **kwargs):
            made = later(*args, **kwargs)
            fetch = made._fetch
            made._fetch = lambda: self._count("download", self._add("download", fetch))
            return made

        def watched_upload(*args, **kwargs):
            return self._count("upload", self._add("upload", upload, *args, **kwargs))

        def watched_load(*args, **kwargs):
            return self._add("read", load, *args, **kwargs)

        for owner, name, function in (
            (Exposure, "load", watched_load),
            (Background, "submit", watched_submit),
            (CudaBackend, "upload", watched_upload),
            (CudaBackend, "download_later", watched_later),
        ):
            self._patches.enter_context(mock.patch.object(owner, name, function))
        return self

    def __exit__(self, *problem):
        self._patches.close()

    def _add(self, name, function, *args, **kwargs):
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - start
            self.seconds[name] += seconds
            if name == "download":
                self._own.download = getattr(self._own, "download", 0.0) + seconds

    def _count(self, name, value):
        fields = getattr(value, "__dict__", {}).values()
        arrays = value if isinstance(value, tuple) else [value, *fields]
        self.bytes[name] += sum(getattr(array, "nbytes", 0) for array in arrays)
        return value


@contextlib.contextmanager
def spans():
    """Record events round parts of a run; gives a list of (name, start, stop)."""
    from gpucoron.ops.registration import Registration
    from gpucoron.steps.align_refs import Alignment
    from gpucoron.steps.bad_pixels import ReferenceLibrary

    out = []
    outliers, resample, subtraction, image_fits = (  # steps of the same names hide the modules
        importlib.import_module(f"gpucoron.{name}")
        for name in (
            "steps.outlier_detection",
            "steps.resample",
            "pipeline.subtraction",
            "steps.image_fits",
        )
    )

    def watched(name, plain):
        def call(*args, **kwargs):
            start = record()
            value = plain(*args, **kwargs)
            out.append((name, start, record()))
            return value

        return call

    with contextlib.ExitStack() as patches:
        for owner, name, label in (
            (outliers, "outlier_detection", "outlier_detection"),
            (ReferenceLibrary, "__init__", "filling: references"),
            (ReferenceLibrary, "fill_science", "filling: science"),
            (Registration, "__init__", "registration: preparing"),
            (Registration, "propagate", "registration: uncertainties"),
            (image_fits, "joint_positions", "registration: fits"),
            (Alignment, "fit", "registration: fits"),
            (Alignment, "in_common_frame", "shift"),
            (Alignment, "shift", "shift"),
            (subtraction, "klip", "klip"),
            (resample, "resample", "resample"),
        ):
            patches.enter_context(
                mock.patch.object(owner, name, watched(label, getattr(owner, name)))
            )
        yield out


def device_times(call):
    """Milliseconds between events round each part, and of our kernels, in two runs."""
    with spans() as parts:
        call()
    synchronize()
    with traced() as launches:
        call()
    synchronize()
    parts = totals(parts)
    return {
        "parts": parts,
        "kernels": totals(launches),
        "goal_ms": sum(parts[name]["ms"] for name in GOAL if name in parts),
    }


def busy(call):
    """What the device did, by PyTorch's profiler where there is one: all kernels and copies."""
    try:
        import torch
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        if not torch.cuda.is_available():
            return {"skipped": "PyTorch sees no GPU"}
    except ImportError:
        return {"skipped": "PyTorch is not installed"}
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call()
        synchronize()
    rows, ends, total, union = {}, 0.0, 0.0, 0.0
    events = [e for e in profiled.events() if e.device_type == DeviceType.CUDA]
    for event in sorted(events, key=lambda e: e.time_range.start):
        start, end = event.time_range.start, event.time_range.end
        row = rows.setdefault(event.name[:90], {"launches": 0, "ms": 0.0})
        row["launches"] += 1
        row["ms"] += (end - start) / 1e3
        total += (end - start) / 1e3
        union += max(0.0, end - max(start, ends)) / 1e3
        ends = max(ends, end)
    longest = sorted(rows.items(), key=lambda item: -item[1]["ms"])[:40]
    return {"sum_ms": total, "busy_ms": union, "events": len(events), "longest": dict(longest)}


# ---------------------------------------------------------------- runs
def runs(work, name, keep=lambda results: None):
    """Whole processes and runs inside this one, on the GPU and on the CPU.

    `keep` is told the results so far whenever there are more.
    """
    asn, mask = found(work, name)
    results = {"set": name, "MB_read": megabytes(asn.parent.glob("*_calints.fits"))}

    def call():
        return gpucoron.run(asn, device="0", psfmask=mask, keep=("i2d",))

    inside = name != "large"
    for what, work_of in (
        ("gpu", lambda: both(asn, mask, work / "out", "0", inside or not TINY)),
        ("device", lambda: device_times(call)),
        ("cpu", lambda: both(asn, mask, work / "out", "cpu", inside)),
        ("profiled", lambda: busy(call)),
    ):
        results[what] = guarded(work_of)
        keep(results)
    shutil.rmtree(work / "out", ignore_errors=True)
    return {**results, "ok": all("error" not in results[what] for what in ("gpu", "cpu", "device"))}


def guarded(work):
    """The result, or what went wrong."""
    try:
        return work()
    except (Exception, SystemExit) as problem:  # hooks may no longer fit; a process failed
        return {"error": f"{type(problem).__name__}: {problem}"[:500]}


def both(asn, mask, out, device, inside=True):
    """The whole process, and the second of two runs inside this one, watched, if wanted."""
    command = [
        sys.executable,
        "-m",
        "gpucoron",
        str(asn),
        "--device",
        device,
        "--psfmask",
        str(mask),
        "--output-dir",
        str(out),
        "-q",
        "--no-save",
        "psfalign",
        "--no-report",
    ]
    options = {"device": device, "psfmask": mask, "output_dir": out, "save": SAVE, "keep": ()}
    results = {"process": process(command, 1 if device == "cpu" or TINY else 3, output=out)}
    if not inside:
        return results
    results["first"] = once(asn, out, options)
    with Watch() as watch:
        watched = guarded(lambda: once(asn, out, options))  # its patches may no longer fit
    return {**results, **watched, "busy_s": watch.seconds, "bytes": watch.bytes}


def once(asn, out, options):
    """One run inside this process."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    result = gpucoron.run(asn, **options)
    wall, steps = time.perf_counter() - start, dict(result.timings)
    files = steps.get("read", 0.0) + steps.get("write", 0.0)
    return {
        "wall_s": wall,
        "steps_s": steps,
        "waiting_for_files_s": files,
        "compute_s": sum(steps.values()) - files,
        "MB_written": megabytes(result.files),
    }


def megabytes(paths):
    return sum(Path(path).stat().st_size for path in paths) / 1e6


def jwst(folder):
    """Whole process of jwst on the canonical set, from a stored result of bench_canonical.py."""
    for path in sorted(folder.glob("*-canonical-*.json"), reverse=True):
        stored = json.loads(path.read_text())
        if "jwst, first" in stored:
            return {
                "median_s": stored["jwst, first"]["median_s"],
                "from": path.name,
                "machine": stored["where"]["device"],
                "what": "whole process, --align first, FFTs in double precision",
            }
    return None
