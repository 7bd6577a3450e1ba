"""``gpucoron info``: show versions and devices, or the contents of an association."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from platform import machine, python_version, system
from typing import Any

from gpucoron.cli.console import Console
from gpucoron.cli.options import Parser, command_parser
from gpucoron.cli.streams import write_lines
from gpucoron.core.text import format_table
from gpucoron.errors import plural

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
        write_lines(association_lines(options.asn) if options.asn else system_lines())
    return 0


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


def association_lines(path) -> Iterator[str]:
    """Describe an association from its JSON and the headers of its members."""
    from gpucoron.io.association import read_association

    association = read_association(path)
    yield (
        f"{association.table_name}: program {association.program or '?'}, target "
        f"{association.target or '?'}, id {association.asn_id}, pool "
        f"{association.asn_pool or '?'}, {plural(len(association.products), 'product')}"
    )
    for product in association.products:
        yield ""
        yield from _product_lines(association, product)


def _product_lines(association, product) -> Iterator[str]:
    from gpucoron.io.exposures import read_exposure, read_meta
    from gpucoron.io.product_naming import standard_product_name
    from gpucoron.io.star import expected_star

    first = read_meta(product.science[0].path)
    name = product.name or f"{standard_product_name(association, first)} (the standard name)"
    yield f"product {name}"
    header = ("exptype", "shape", "instrument", "filter", "pupil", "mask", "subarray", "file")
    rows, integrations = [], {"science": 0, "psf": 0}
    for member in (*product.science, *product.psf):
        shape, meta = _shape_and_meta(member.path)
        integrations[member.exptype] += shape[0]
        optics = (meta.instrument, meta.filter, meta.pupil, meta.coronmsk, meta.subarray)
        size = " x ".join(map(str, shape))
        rows.append((member.exptype, size, *(value or "?" for value in optics), member.expname))
    for member in product.ignored:
        status = "ignored" if member.path.exists() else "ignored, missing"
        rows.append((member.exptype, status, *5 * ("",), member.expname))
    yield from (f"  {line}" for line in format_table(rows, header))
    science, references = integrations["science"], integrations["psf"]
    yield (
        f"  {science} science and {references} reference integrations: "
        f"{science + references} images to register, {science * references} pairs"
    )
    if star := expected_star(read_exposure(product.science[0].path, "science", pixels=False)):
        (x, y), keywords = star
        yield f"  star at x, y = {x:.1f}, {y:.1f} (pixels from 1) by {keywords}; --star changes it"


def _shape_and_meta(path):
    from gpucoron.errors import ExposureError
    from gpucoron.io.exposures import read_meta
    from gpucoron.io.fits.reading import open_fits

    meta = read_meta(path)
    sci: Any = open_fits(path, ExposureError).find("SCI")
    shape = sci.shape
    return ((1, *shape) if len(shape) == 2 else shape), meta
