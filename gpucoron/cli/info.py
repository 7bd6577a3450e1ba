"""``gpucoron info``: show versions and devices, or what an association, folder or file holds."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from platform import machine, python_version, system

from gpucoron.cli.console import Console
from gpucoron.cli.options import Parser, command_parser
from gpucoron.cli.streams import write_lines
from gpucoron.core.text import format_table

_PACKAGES = (
    *("numpy", "scipy", "numba", "astropy", "asdf", "asdf-astropy", "gwcs", "stdatamodels"),
    *("rich", "jwst", "crds"),
)
_CUPY = ("cupy", "cupy-cuda12x", "cupy-cuda13x")


def make_parser() -> Parser:
    """Build the parser of this command."""
    return command_parser("info")


def main(argv: list[str]) -> int:
    """Run ``gpucoron info``."""
    options = make_parser().parse_args(argv)
    with Console():  # shows what the readers warn about
        write_lines(system_lines() if options.path is None else _path_lines(options.path))
    return 0


def _path_lines(path: str) -> Iterator[str]:
    from gpucoron.cli import info_files

    return info_files.describe(path)


def system_lines() -> Iterator[str]:
    """Describe the software and the machine."""
    from gpucoron.backend.device import (
        choose_device,
        cpu_threads,
        describe_devices,
        find_gpus,
        memory,
    )

    rows = [
        ("gpucoron", _version("gpucoron")),
        ("python", f"{python_version()} ({system()} {machine()})"),
    ]
    rows += [(name, _version(name)) for name in _PACKAGES]
    cupy = [f"{_version(name)} ({name})" for name in _CUPY if _version(name) != _ABSENT]
    rows.append(("cupy", ", ".join(cupy) or _ABSENT))
    total, free = memory()
    rows.append(("threads", str(cpu_threads())))
    rows.append(("memory", f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free"))
    yield from format_table(rows)
    yield ""
    yield from format_table(
        [(f"--device {device.label}", device.description) for device in describe_devices()]
    )
    if problem := find_gpus()[1]:
        yield f"no GPU: {problem}"
    yield from _kernel_lines(find_gpus()[0])
    automatic = choose_device("auto")
    suited = ", for runs that are expected to be faster there" * (automatic.kind == "gpu")
    yield f"--device auto takes {automatic.label}: {automatic.reason}{suited}"


def _kernel_lines(gpus) -> Iterator[str]:
    """Yield how many kernels are compiled already."""
    if not gpus:
        return
    from gpucoron.backend import cuda, kernel_cache

    every = cuda.all_kernels()
    sources = [(cuda.read_kernels(file).source, name) for file, name in every]
    for gpu in gpus:
        known = kernel_cache.count_cached(cuda.cupy(), sources, cuda.OPTIONS, gpu.index)
        more = (
            f" (gpucoron compile --device {gpu.label} compiles all)" if known < len(every) else ""
        )
        yield (
            f"device {gpu.label}: {known} of {len(every)} kernels are compiled for compute "
            f"capability {gpu.capability}, kept in {kernel_cache.cache_folder()}{more}"
        )


_ABSENT = "not installed"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return _ABSENT
