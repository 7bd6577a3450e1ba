"""Looking at all members before any work: those that cannot be used, and those that do not fit."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.errors import ExposureError, InputError
from gpucoron.io.association import Association, LeftOut, Member, Product
from gpucoron.io.exposures import Exposure, ExposureMeta, exposure_of, science_hdu
from gpucoron.io.fits.checksums import check_sums
from gpucoron.io.fits.reading import FitsFile, open_fits
from gpucoron.io.wcs import check_outlines, output_wcs, read_wcs
from gpucoron.ops.dq import DO_NOT_USE

if TYPE_CHECKING:
    from gpucoron.io.wcs import OutputWcs

__all__ = ["Exposures", "Requirements", "check_members", "inspect_members", "output_grid"]

log = logging.getLogger("gpucoron")

_SAME = ("INSTRUME", "DETECTOR", "CHANNEL", "FILTER", "PUPIL", "CORONMSK", "SUBARRAY", "BUNIT")
_LONGEST_S = 1e9  # of an exposure
_right: set[tuple] = set()  # files whose sums have been checked: a worker reads them many times

Exposures = dict[tuple[Path, str], Exposure]  # by path and exptype, without their pixels


def _key(member: Member) -> tuple[Path, str]:
    return member.path, member.exptype


@dataclass(frozen=True)
class Requirements:
    """What a run needs of its members."""

    grid: Mapping[str, Any] | None  # keywords of `output_wcs`; None where nothing is combined
    times: bool  # science exposures are weighted by their exposure times
    pixels: bool  # there must be usable ones: finite, and not DO_NOT_USE
    checksums: bool  # DATASUM and CHECKSUM, where the headers have them, must be right

    @classmethod
    def of(cls, parameters: Any, checksums: bool = True, pixels: bool = True) -> Requirements:
        """Return what the steps need with these `gpucoron.Parameters`."""
        resample = parameters.resample
        times = resample.weight_type == "exptime"
        pixels = pixels and not parameters.klip.skip
        return cls(None if resample.skip else resample.grid, times, pixels, checksums)


def inspect_members(
    association: Association,
    needs: Requirements,
    *,
    skip_bad: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> tuple[Association, Exposures]:
    """Read all but the pixels of all members, and see whether they can be used.

    Parameters
    ----------
    association : Association
    needs : Requirements
    skip_bad : bool
        Leave out what cannot be used or does not go with most others, with a warning: see
        `Product.left_out`.
    progress : callable
        Called as ``progress(done, total, name)``.

    Raises
    ------
    ExposureError
        A member cannot be used, or does not go with the others; with `skip_bad`, no science or no
        psf member is left.
    ParameterError
        The output grid that was asked for cannot be.

    Notes
    -----
    Where the headers have checksums every byte is read, at some GB/s; otherwise headers, and
    images up to the first usable pixel.
    """
    members = {_key(m): m for p in association.products for m in p.used}
    exposures: Exposures = {}
    reasons: dict[tuple[Path, str], str] = {}
    for done, (key, member) in enumerate(members.items(), start=1):
        try:
            exposures[key] = _look_at(member, needs, strict=skip_bad)
        except InputError as problem:
            if not skip_bad:
                raise
            reasons[key] = _reason(problem, member)
        progress(done, len(members), member.path.name)
    products = tuple(
        _inspected(association, product, exposures, reasons, needs, skip_bad)
        for product in association.products
    )
    return replace(association, products=products), exposures


def _look_at(member: Member, needs: Requirements, strict: bool) -> Exposure:
    file = open_fits(member.path, ExposureError)
    exposure = exposure_of(file, member.exptype, pixels=False)
    science = member.exptype == "science"
    if needs.checksums:
        _check_sums_once(file)
    if science and needs.grid is not None:
        read_wcs(exposure.asdf_bytes, exposure.path.name)
        if needs.times:
            _check_time(exposure)
    if needs.pixels and (science or strict) and not _has_usable_pixel(file):
        raise ExposureError(
            f"{exposure.path}: no integration has a usable pixel (finite and not "
            "flagged DO_NOT_USE)"
        )
    return exposure


def _check_time(exposure: Exposure) -> None:
    """Raise where an exposure has no time to weight it by."""
    name, seconds = "TMEASURE", exposure.meta.measurement_time
    if seconds is None:
        name, seconds = "XPOSURE", exposure.meta.exposure_time
    if seconds is None or not 0 < seconds < _LONGEST_S:
        found = (
            "has neither TMEASURE nor XPOSURE" if seconds is None else f"{name} is {seconds:g} s"
        )
        expected = "one of them" if seconds is None else "a time above 0"
        raise ExposureError(
            f"{exposure.path}: {found}, expected {expected} to weight by "
            "(resample.weight_type=exptime)"
        )


def _check_sums_once(file: FitsFile) -> None:
    state = file.path.stat()
    key = (file.path.resolve(), state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if key not in _right:
        check_sums(file)
        _right.add(key)


def _has_usable_pixel(file: FitsFile) -> bool:
    sci, dq = science_hdu(file), file.find("DQ")
    for i in range(sci.shape[0] if len(sci.shape) == 3 else 1):
        good = np.isfinite(file.floats(sci.plane(i)))
        if dq is not None and not dq.empty:
            good &= (file.bits(dq.plane(i)) & DO_NOT_USE) == 0
        if good.any():
            return True
    return False


def _inspected(association, product: Product, exposures, reasons, needs, skip_bad) -> Product:
    own = [m for m in product.used if _key(m) in exposures]
    bad = {m: reasons[_key(m)] for m in product.used if _key(m) in reasons}

    def may_combine(group):
        check_members([exposures[_key(m)] for m in group])

    def may_lie_together(group):
        found = [exposures[_key(m)] for m in group]
        if len(group) == 1 or not skip_bad:
            output_grid(found, needs.grid)
        elif needs.grid.get("output_shape") is None and not needs.grid.get("output_wcs_file"):
            with _quiet_layout():
                check_outlines(*_geometry(found))

    science = [m for m in own if m.exptype == "science"]
    if not skip_bad:
        may_combine(own)
        if needs.grid is not None:
            may_lie_together(science)
        if needs.pixels:
            _check_references(association, product)
        return product
    bad |= _minority(own, may_combine)
    if needs.grid is not None:
        science = [m for m in science if m not in bad]
        bad |= _unfit(science, may_lie_together)
        bad |= _minority([m for m in science if m not in bad], may_lie_together)
    return _without(association, product, bad)


def output_grid(exposures: Sequence[Exposure], grid: Mapping[str, Any]) -> OutputWcs:
    """Return the grid of the image that combines science exposures, without its warnings.

    What `gpucoron.io.wcs.output_wcs` says is said when the image is made.
    """
    with _quiet_layout():
        return output_wcs(*_geometry(exposures), **grid)


def _geometry(exposures: Sequence[Exposure]) -> tuple[list, list, list]:
    """Return the WCS, metadata and shape of exposures."""
    wcss = [read_wcs(e.asdf_bytes, e.path.name) for e in exposures]
    return wcss, [e.meta for e in exposures], [e.shape for e in exposures]


@contextmanager
def _quiet_layout() -> Iterator[None]:
    layout = logging.getLogger("gpucoron.io.wcs.layout")
    layout.disabled = True
    try:
        yield
    finally:
        layout.disabled = False


def _check_references(association: Association, product: Product) -> None:
    if not any(_has_usable_pixel(open_fits(m.path, ExposureError)) for m in product.psf):
        raise ExposureError(
            f"{association.path}: no reference integration has a usable pixel "
            "(finite and not flagged DO_NOT_USE)"
        )


def _unfit(members: Sequence[Member], check) -> dict[Member, str]:
    return {m: problem for m in members if (problem := _problem(check, [m]))}


def _minority(members: Sequence[Member], check) -> dict[Member, str]:
    """Return the members that do not go with the one that goes with most, and the reasons."""
    against = []
    for one in members:
        others = (m for m in members if m is not one)
        found = {m: problem for m in others if (problem := _problem(check, [one, m]))}
        if not found:
            return found
        against.append(found)
    return min(against, key=len, default={})


def _problem(check: Callable[[list[Member]], None], group: list[Member]) -> str:
    """Return what a check says against the last member of a group; "" for nothing."""
    try:
        check(group)
    except ExposureError as problem:
        return _reason(problem, group[-1])
    return ""


def _without(association: Association, product: Product, bad: Mapping[Member, str]) -> Product:
    """Leave members out, each with a warning; raise where too few are left."""
    for member, reason in bad.items():
        log.warning("%s (%s) is left out: %s", member.expname, member.exptype, reason)
    product = replace(
        product,
        members=tuple(m for m in product.members if m not in bad),
        left_out=tuple(LeftOut(m.expname, m.exptype, reason) for m, reason in bad.items()),
    )
    for exptype in ("science", "psf"):
        if not getattr(product, exptype):
            texts = "; ".join(f"{m.expname}: {bad[m]}" for m in bad if m.exptype == exptype)
            raise ExposureError(
                f"{association.path}: no {exptype} member can be used, expected at "
                f"least one ({texts})"
            )
    return product


def _reason(problem: Exception, member: Member) -> str:
    """Return what is wrong, without the name of the file."""
    text = str(problem)
    for start in (f"{member.path}: ", f"{member.path.name}: "):
        text = text.removeprefix(start)
    return text


def check_members(exposures: Sequence[Exposure]) -> None:
    """Make sure that the exposures of one product can be combined: each is like the first.

    Raises
    ------
    ExposureError
        Instrument, detector, channel, filter, pupil, coronagraph mask, subarray, units, image
        shape or pixel scale (PIXAR_A2, beyond one part in a thousand) differ. A keyword that
        either lacks is not compared.
    """
    for other in exposures[1:]:
        for what, ours, theirs in _differences(exposures[0], other):
            raise ExposureError(
                f"{other.path.name}: {what} is {theirs}, but {exposures[0].path.name} has {ours}; "
                "members of one product must agree"
            )


def _differences(first: Exposure, other: Exposure) -> Iterator[tuple[str, Any, Any]]:
    """Yield (what, value in `first`, value in `other`) for all that should agree and does not."""
    for entry in dataclasses.fields(ExposureMeta):
        keyword = entry.metadata["keyword"]
        ours, theirs = getattr(first.meta, entry.name), getattr(other.meta, entry.name)
        if keyword in _SAME and None not in (ours, theirs) and ours.lower() != theirs.lower():
            yield keyword, ours, theirs
    if first.shape[1:] != other.shape[1:]:
        yield "the image shape (ny, nx)", first.shape[1:], other.shape[1:]
    ours, theirs = first.meta.pixar_a2, other.meta.pixar_a2
    if ours is not None and theirs is not None and abs(ours - theirs) > 1e-3 * abs(ours):
        yield "PIXAR_A2 (arcsec2)", f"{ours:.6g}", f"{theirs:.6g}"
