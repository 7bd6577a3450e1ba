"""Estimate the memory, disk and time of a run."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpucoron.backend.parallel import BLOCK
from gpucoron.core.parameters import Parameters
from gpucoron.errors import UsageError
from gpucoron.pipeline.expected_star import describe_star
from gpucoron.pipeline.zones import describe_zones
from gpucoron.steps.positions import SPANNING

if TYPE_CHECKING:
    from gpucoron.io.wcs import OutputWcs
    from gpucoron.pipeline.inputs import ProductInputs, RunInputs
    from gpucoron.pipeline.run_options import RunOptions

log = logging.getLogger("gpucoron")

MIB = 2**20
#: Memory of the interpreter with its libraries and compiled code.
BASE = 300 * MIB
# Larger ones are no faster, and once their arrays are too large for malloc to keep, much slower.
LARGEST_BATCH = 8
# bytes per pixel of one image, 4 each: SCI, ERR, DQ; with VAR_POISSON, VAR_RNOISE, VAR_FLAT; while
# outliers are flagged; of the geometry of resampling
_PLAIN, _FULL, _FLAGGING, _GEOMETRY = 12, 24, 58, 100
# bytes per output pixel: what is made of the sums; the sums, with those of the field, which take
# memory only where something falls; a layer of the context, which has a bit an integration; another
# image that is being written
_MADE, _SUMS, _LAYER, _WRITTEN = 82, 84, 8, 12
# bytes per output pixel on disk: SCI, ERR, DQ, WHT and five VAR_*; a layer
_STORED, _STORED_LAYER = 36, 4
_BITS = 32
# of images of an off-axis source at many places; of the optics at more of them and the map of the
# contrast (canonical set)
_OFF_AXIS, _INJECTED = 64 * MIB, 450 * MIB
# output pixels that a pixel's drop reaches at equal pixel scales, 12 bytes each
_REACHED = {"square": 5, "point": 1, "turbo": 4, "gaussian": 12, "lanczos2": 16, "lanczos3": 36}
# seconds per pixel: fit of a pair; shift of an image; of a reference in a decomposition, and a
# multiply-add there; flagging, filling and transforming an image
_FIT, _SHIFT, _PASS, _MULTIPLY, _PREPARE = 4.0e-9, 1.2e-8, 2.5e-9, 6.0e-11, 2.0e-7
_PROBE = 7.2e-4  # seconds that the trial transform takes where these were measured
# In zones: of a pixel that is picked, of a decomposition and its n^3; bench_zones.py
_GATHER, _MATRIX, _EIGEN = 5.0e-9, 2.0e-4, 1.2e-9
# what more threads than the two of those measurements are worth less for each: the memory is shared
# (2 threads of bench/README.md, 16 of bench/results/2026-11-27-gpu-nvidia-h200-first.json)
_CROWD = 0.16
# Whole processes, files and all, s. On the CPU beside what Plan.seconds says: the canonical set of
# bench/README.md. On a GPU, and more for each pair and pixel: "process" of both sets in that file,
# 2.97 s with 720 pairs of 320 x 320 and 4.40 s with 21,600.
_CPU_START, _GPU_START, _GPU_PAIR = 1.3, 2.92, 6.7e-10


@dataclass(frozen=True)
class Plan:
    """Estimated memory, disk and time of one product."""

    name: str
    pairs: int  # fits of a reference to a science integration
    references: int  # images, of the science exposure that has most
    integrations: tuple[int, ...]  # of each science exposure
    shape: tuple[int, int]  # of an image, (ny, nx)
    output_shape: tuple[int, int] | None  # of the combined image; None where there is none
    batch: int  # references shifted at a time
    memory: int  # peak, bytes, with what Python and its libraries take
    least_memory: int  # the same with batches of one
    output_memory: int  # what the combined image alone takes while it is made
    disk: int  # bytes to be written
    seconds: float  # wall time without reading and writing
    star: str = ""  # where it is before anything is measured, in words
    mode: str = ""  # what the PSF is made of, in words, where it is not psf members alone
    zones: str = ""  # of KLIP, in words

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        exposures = " + ".join(str(n) for n in self.integrations)
        shape = self.output_shape
        output = "none" if shape is None else f"{shape[0]} x {shape[1]} pixels"
        return [
            f"product {self.name}",
            f"  science integrations  {exposures}",
            f"  reference images      {self.references}, {self.shape[0]} x {self.shape[1]} pixels",
            *([f"  mode                  {self.mode}"] if self.mode else []),
            f"  output image          {output}",
            *([f"  star                  {self.star}"] if self.star else []),
            *([f"  zones of KLIP         {self.zones}"] if self.zones else []),
            f"  pairs to fit          {self.pairs}",
            f"  batches               {self.batch} references at a time",
            f"  peak memory           {self.memory / MIB:.0f} MiB",
            f"  disk to be written    {self.disk / MIB:.0f} MiB",
            f"  expected time         {self.seconds:.1f} s, without reading and writing",
        ]


def plan_products(options: RunOptions, inputs: RunInputs, threads: int) -> tuple[Plan, ...]:
    """Estimate memory, disk and time of each product."""
    return tuple(plan_product(options, own, threads) for own in inputs.products)


def plan_product(options: RunOptions, inputs: ProductInputs, threads: int) -> Plan:
    """Estimate memory, disk and time of a product."""
    from gpucoron.io.inspection import output_grid

    resample = options.parameters.resample
    plan = make_plan(
        inputs.name,
        [e.shape for e in inputs.science],
        [e.shape for e in inputs.references],
        options.parameters,
        options.save,
        options.keep,
        output=None if resample.skip else output_grid(inputs.science, options.parameters.grid),
        budget=options.budget(),
        threads=threads,
        rolls=[inputs.roll_counts(exposure) for exposure in inputs.science],
        truncations=inputs.truncations,
        forward=options.keeps_forward_model,
        contrast=options.contrast,
    )
    mode = "" if inputs.mode == "rdi" else f"{inputs.mode}: {inputs.chosen.words}"
    star = describe_star(options.parameters, inputs.science)
    return replace(plan, star=star, mode=mode, zones=describe_zones(options.parameters))


def check_memory(options: RunOptions, plans: Sequence[Plan]) -> None:
    """Compare what products take with what the run may use, and with what is free.

    Raises
    ------
    UsageError
        More than the `memory` that was asked for, or, where none was, than what is free: the
        system would end the process. A combined image that does not fit into what is free is one in
        either case. Without `memory`, more than half of what is free is a warning.
    """
    budget = options.budget()
    for plan in plans:
        least, free = plan.least_memory, options.free_memory()
        needs = f"{plan.name}: {_output_hint(plan)}needs about {least // MIB} MiB"
        text = f"{needs}, and {budget // MIB} MiB are allowed"
        if options.memory is not None and least > budget:
            raise UsageError(f"{text}; give --memory {-(-least // MIB)}MiB or more")
        if plan.output_memory > free:
            raise UsageError(
                f"{needs}, and {free // MIB} MiB are free; see resample.output_shape, crpix, crval "
                "and pixel_scale"
            )
        if options.memory is None and least > free:
            raise UsageError(
                f"{needs}, and {free // MIB} MiB are free; keep or save fewer products, or give "
                f"--memory {-(-least // MIB)}MiB to try all the same"
            )
        if least > budget:
            log.warning("%s by default (half of what is free); going on", text)


def _output_hint(plan: Plan) -> str:
    """Say how large the combined image is where it takes most of the memory."""
    if plan.output_shape is None or 2 * plan.output_memory < plan.least_memory:
        return ""
    return "with an output image of {} x {} pixels ".format(*plan.output_shape)


def make_plan(
    name: str,
    science: Sequence[tuple[int, int, int]],
    references: Sequence[tuple[int, int, int]],
    parameters: Parameters,
    save: Collection[str],
    keep: Collection[str] = (),
    *,
    output: OutputWcs | None = None,
    budget: int | None = None,
    threads: int = 1,
    rolls: Sequence[Sequence[int]] = (),
    truncations: Sequence[int] | None = None,
    forward: bool = False,
    contrast: bool = False,
) -> Plan:
    """Estimate memory, disk and time of a product from the shapes (n, ny, nx) of its exposures.

    `references` are the psf members. `output` is the grid of the combined image, None where there
    is none. `budget`, the bytes that the run may use, decides the batch; None is no limit. `rolls`
    has for each science exposure the integrations of those that are its references, too.
    `truncations` are the numbers of KL modes. Default: as the psf members allow. With `forward` the
    forward model of a source is kept, and with `contrast` sources are injected by it.
    """
    ny, nx = science[0][1:]
    npix, npsf = ny * nx, sum(s[0] for s in references)
    if truncations is None:
        truncations = parameters.klip.truncations([s[0] for s in references])
    counts = tuple(s[0] for s in science)
    nrefs = [npsf + sum(own) for own in rolls] or [npsf] * len(counts)
    nref, in_library = max(nrefs), sum(counts) if any(rolls) else 0
    align = "first" if parameters.align_refs.skip else parameters.align_refs.align
    times = [0 if parameters.klip.skip else 1 if align == "first" else n for n in counts]
    aligned = sum(n * m for n, m in zip(times, nrefs, strict=True))
    pairs = 0
    if not parameters.klip.skip:
        pairs = sum(_pairs(align, n, m) for n, m in zip(counts, nrefs, strict=True))
    n_output = math.prod(output.shape) if output else 0
    stored = n_output * (_STORED + -(-sum(counts) // _BITS) * _STORED_LAYER)
    combined = _output_memory(output, npix, counts, len(truncations), save, keep) if output else 0
    fixed = _fixed_memory(
        npix, nref, counts, references, parameters, save, keep, align, combined, truncations
    )
    if in_library:
        fixed += npix * _rolls_memory(npsf, nref, in_library, save, keep, parameters)
    if forward and not parameters.klip.skip:
        fixed += npix * _response_memory(counts, nrefs, rolls, truncations, parameters)
        fixed += (_OFF_AXIS + _INJECTED * contrast) * bool(output)
    if threads > 1:  # one exposure is read ahead while another is written
        fixed += 3 * _FULL * npix * max(s[0] for s in (*science, *references))
    by_one = 32 * npix  # of one reference while it is shifted: spectra, image, err
    batch = max(1, min(nref, LARGEST_BATCH))
    if budget is not None:
        batch = max(1, min(batch, (budget - fixed) // by_one))
    return Plan(
        name,
        pairs,
        nref,
        counts,
        (ny, nx),
        output.shape if output else None,
        int(batch),
        fixed + batch * by_one,
        fixed + by_one,
        combined,
        _disk(npix, npsf, counts, parameters, len(truncations), save, aligned, stored),
        _seconds(npix, nref, counts, sum(times), pairs, align, truncations, save, threads)
        + _zones_seconds(npix, nref, counts, sum(times), parameters) / _worth(threads) * _speed(),
    )


def _pairs(align: str, n: int, nref: int) -> int:
    """Fits of a science exposure of n integrations."""
    if align == "joint":
        spanning = min(n, SPANNING)
        return spanning * (nref + n - spanning)
    return nref * (n if align == "each" else 1)


def _output_memory(output, npix, counts, n_truncations, save, keep):
    """Bytes that the combined image takes while it is made, another one being written or kept."""
    n_output, layers = math.prod(output.shape), -(-sum(counts) // _BITS)
    reached = min(n_output, npix * len(counts) / output.pixel_scale_ratio**2)
    others = n_truncations - 1
    kept = (_STORED + layers * _STORED_LAYER) * others * ("i2d" in keep)
    written = _WRITTEN * ("i2d" in save and others > 0)
    return int(n_output * (_MADE + layers * _LAYER + kept + written) + reached * _SUMS)


def _rolls_memory(npsf, nref, in_library, save, keep, parameters):
    """Bytes per pixel where rolls are references: all exposures, and a library of all images."""
    with_err = bool({"psfalign"} & {*save, *keep}) and not parameters.align_refs.skip
    images = npsf + in_library
    stacked = max(_PLAIN * images - nref, 0)  # while the library is made
    return _FULL * in_library + max((4 + 8 + 8 * with_err) * images, stacked)


def _fixed_memory(
    npix, nref, counts, references, parameters, save, keep, align, combined, truncations
):
    """Peak memory without a batch: the maximum over the phases of a run."""
    n_exposures, npsf = len(counts) + len(references), sum(s[0] for s in references)
    kept = _PLAIN * npsf * ("psfstack" in keep) + 4 * n_exposures  # and their AREA
    if "crfints" in keep:
        kept += _FULL * (npsf + sum(counts))
    if "psfalign" in keep:
        kept += 20 * nref * (len(counts) if align == "first" else sum(counts))
    peaks = [2 * _PLAIN * npsf + _FLAGGING * max((s[0] for s in references), default=0)]
    if parameters.klip.skip:
        peaks.append(_FULL * sum(counts[:-1]) + _FLAGGING * counts[-1])
        peaks.append(_FULL * sum(counts) + combined / npix)
        return BASE + int(npix * (kept + max(peaks)))
    with_err = bool({"psfalign"} & {*save, *keep}) and not parameters.align_refs.skip
    prepared = (4 + 8 + 8 * with_err) * nref  # images, spectra
    peaks.append(prepared + (_PLAIN + 3 + 4 * with_err) * nref)
    vectors = max(min(k, max(nref - k, 0)) for k in truncations)
    aligning = prepared + (8 + 8 + 1) * nref + 8 * vectors  # m^2 p, aligned, which are finite
    aligning += _zones_memory(npix, nref, max(counts), len(truncations), parameters.klip) / npix
    own = _FULL + 4 + 16 * len(truncations)
    if align != "each":
        own += 9 + 16 * len(truncations)  # all integrations subtracted at once
    if align == "joint":
        own += 32  # and moved to where the references are
    done = _FULL - 4 + 12 * len(truncations) * (1 + ("psfsub" in keep))
    for k, n in enumerate(counts):
        before = done * sum(counts[:k])
        peaks += [before + prepared + _FLAGGING * n, before + aligning + own * n]
    combining = (_GEOMETRY + _wide_drops(parameters.resample)) * bool(combined) + combined / npix
    peaks.append(done * sum(counts) + combining)
    return BASE + int(npix * (kept + max(peaks)))


def _response_memory(counts, nrefs, rolls, truncations, parameters):
    """Bytes per pixel of the responses of all exposures, and of one while it is made."""
    klip, slopes = parameters.klip, 2 * (not parameters.align_refs.skip)
    simple = not (any(map(any, rolls)) or klip.zoned)
    images = [
        1 + slopes + (max(truncations) if simple else m + n * any(own))
        for n, m, own in zip(counts, nrefs, rolls or [()] * len(counts), strict=True)
    ]
    # then weights of all integrations, and the geometry of the combined image
    return 8 * (sum(images) + max(images)) + 12 * sum(counts) + _GEOMETRY * len(counts)


def _zones_memory(npix, nref, n, truncations, klip):
    """Bytes of the matrices of KLIP in zones, and of masks where areas overlap."""
    if not klip.zoned:
        return 0
    zones = klip.annuli * klip.subsections
    pieces = zones + npix // BLOCK
    matrices = 2 * pieces * (nref + n) * nref + zones * (nref + (1 + truncations) * n) * nref
    return 8 * matrices + 2 * zones * npix * bool(klip.optimise)


def _zones_seconds(npix, nref, counts, aligned, parameters):
    """Seconds that KLIP in zones takes more than on the whole image, in one thread."""
    klip = parameters.klip
    if not klip.zoned or klip.skip:
        return 0.0
    zones = klip.annuli * klip.subsections
    sets = aligned if klip.maxnumbasis else len(counts)
    size = min(klip.maxnumbasis or nref, nref)
    gathered = 2 * npix * (nref * len(counts) + sum(counts))
    return gathered * _GATHER + zones * sets * (_MATRIX + size**3 * _EIGEN)


def _wide_drops(resample):
    """Bytes per pixel of overlaps beyond those of square drops at equal pixel scales."""
    finer = min(1.0, resample.pixel_scale_ratio) ** 2
    return int(12 * max(0.0, _REACHED[resample.kernel] / finer - _REACHED["square"]))


def _disk(npix, npsf, counts, parameters, truncations, save, aligned, stored):
    sizes = {
        "crfints": _FULL * (npsf + sum(counts)) * (not parameters.outlier_detection.skip),
        "psfstack": _PLAIN * npsf,
        "psfalign": _PLAIN * aligned * (not parameters.align_refs.skip),
        "psfsub": (_FULL + 8) * sum(counts) * truncations * (not parameters.klip.skip),
    }
    images = npix * sum(size for name, size in sizes.items() if name in save)
    return images + stored * truncations * ("i2d" in save)


def _seconds(npix, nref, counts, aligned, pairs, align, truncations, save, threads):
    nsci, images = sum(counts), aligned if align == "each" else min(aligned, len(counts))
    shifts = nref * (images + aligned * (align == "joint" and "psfalign" in save))
    shifts += nref * aligned * ("psfalign" in save)  # of ERR
    if align == "joint":
        shifts += 2 * nsci * (1 + len(truncations))
    bases = images if align == "each" else min(images, 2)
    vectors = min(max(truncations), nref)
    products = bases * nref * (nref / 2 + min(vectors, nref - vectors))
    work = (
        pairs * _FIT
        + shifts * _SHIFT
        + bases * nref * _PASS
        + products * _MULTIPLY
        + (nref + nsci) * _PREPARE
    )
    return npix * work / _worth(threads) * _speed() + 0.5


def _worth(threads: int) -> float:
    """Speed-up of several threads over one."""
    return max(1, threads) / (1 + _CROWD * max(0, threads - 2))


def predict(plans: Sequence[Plan]) -> tuple[float, float]:
    """Predict the seconds that a run takes on a GPU, and on the CPU.

    They are those of whole processes, with compiled code kept from before.
    """
    pixels = sum(plan.pairs * plan.shape[0] * plan.shape[1] for plan in plans)
    return _GPU_START + _GPU_PAIR * pixels, _CPU_START + sum(plan.seconds for plan in plans)


@functools.cache
def _speed() -> float:
    """Run time on this machine relative to the one on which the constants were measured."""
    import numpy as np
    import scipy.fft

    image = np.ones((320, 320))
    scipy.fft.rfft2(image)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        scipy.fft.irfft2(scipy.fft.rfft2(image), s=image.shape)
        times.append(time.perf_counter() - start)
    return min(times) / _PROBE
