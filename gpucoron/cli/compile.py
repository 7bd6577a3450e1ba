"""``gpucoron compile``: compile CUDA kernels and numba loops ahead of the first run."""

from __future__ import annotations

import concurrent.futures
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpucoron.backend.device import choose_device, cpu_threads
from gpucoron.cli.options import Parser, add_logging_options, command_parser
from gpucoron.cli.run import run_console
from gpucoron.errors import UsageError

log = logging.getLogger("gpucoron")

_MOST_PROCESSES = 8  # each has a context on the GPU, some hundred MB there


def make_parser() -> Parser:
    """Build the parser of this command."""
    parser = command_parser("compile", processes=_MOST_PROCESSES)
    add_logging_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run ``gpucoron compile``."""
    options = make_parser().parse_args(argv)
    processes = options.processes
    if processes is None:
        processes = min(cpu_threads(), _MOST_PROCESSES)
    if processes < 1:
        raise UsageError(f"--processes is {processes}, expected 1 or more")
    with run_console(options) as console:
        start = time.perf_counter()
        device = choose_device(options.device)
        log.info("device %s: %s (%s)", device.label, device.description, device.reason)
        for index in device.indices:
            compile_kernels(index, processes, console.progress)
        tiny_runs(device, console.progress)
        log.info("everything is compiled, %.1f s", time.perf_counter() - start)
    return 0


def compile_kernels(index: int, processes: int, progress) -> int:
    """Compile every kernel that is not in the cache yet; return how many these were.

    `index` is CUDA's number of the GPU; `processes` compile at a time. A kernel that does not
    compile raises DeviceError.
    """
    from gpucoron.backend import cuda, kernel_cache

    cp = cuda.cupy()
    missing = [
        (file, name)
        for file, name in cuda.all_kernels()
        if not kernel_cache.is_cached(cp, cuda.read_kernels(file).source, cuda.OPTIONS, name, index)
    ]
    log.info(
        "%d of %d kernels to compile for device %d; they are kept in %s",
        len(missing),
        len(cuda.all_kernels()),
        index,
        kernel_cache.cache_folder(),
    )
    if processes == 1 or len(missing) < 2:
        for done, (file, name) in enumerate(missing, 1):
            _compile_one(index, file, name)
            progress("kernels", done, len(missing), f"{file}.cu, {name}")
        return len(missing)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(processes, len(missing)), context) as pool:
        futures = {
            pool.submit(_compile_one, index, file, name): f"{file}.cu, {name}"
            for file, name in missing
        }
        try:
            for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                future.result()
                progress("kernels", done, len(missing), futures[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return len(missing)


def _compile_one(index: int, file: str, name: str) -> None:
    from gpucoron.backend import cuda

    with cuda.cupy().cuda.Device(index):
        cuda.kernel(file, name).compile()


def tiny_runs(device, progress) -> None:
    """Run small associations, which compiles all the rest."""
    from gpucoron import api as pipeline
    from gpucoron.simulate import simulate

    with tempfile.TemporaryDirectory(prefix="gpucoron-") as folder:
        with _quiet_log():
            made = simulate(
                Path(folder) / "input",
                "nircam",
                1,
                shape=(36, 40),
                n_science=2,
                n_integrations=3,
                n_references=2,
                n_reference_integrations=2,
                planets=(),
                disk=False,
                n_optical_states=1,
            )
        for done, align in enumerate(("joint", "each", "first"), 1):
            with _quiet_log():
                pipeline.run(
                    made.asn,
                    device,
                    Path(folder) / align,
                    align,
                    psfmask=made.psfmask,
                    klip_truncate=2,
                    keep=(),
                )
            progress("tiny runs", done, 3, f"--align {align}")
    if device.kind == "cpu":
        from gpucoron.ops.cpu.compile_late import compile_late

        compile_late()


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Log nothing but warnings."""
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
