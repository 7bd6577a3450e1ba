"""Looking at all members before any work: those that cannot be used, and those that do not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpucoron.errors import ExposureError, InputError
from gpucoron.io.agreement import check_members, warn_of_copies, warn_of_differences
from gpucoron.io.association import Association, LeftOut, Member, Product
from gpucoron.io.exposures import Exposure, exposure_of, science_hdu
from gpucoron.io.fits.checksums import check_sums
from gpucoron.io.fits.reading import FitsFile, open_fits
from gpucoron.io.wcs import check_outlines, output_wcs, read_wcs
from gpucoron.ops.dq import DO_NOT_USE

__all__ = ["Exposures", "Requirements", "inspect_members"]

log = logging.getLogger("gpucoron")

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
    for product in products:
        found = [exposures[_key(m)] for m in product.used]
        warn_of_differences(found)
        if needs.pixels:
            warn_of_copies(found)
    return replace(association, products=products), exposures


def _look_at(member: Member, needs: Requirements, strict: bool) -> Exposure:
    file = open_fits(member.path, ExposureError)
    exposure = exposure_of(file, member.exptype, pixels=False)
    science = member.exptype == "science"
    if needs.checksums:
        _check_sums_once(file)
    if science and needs.grid is not None:
        read_wcs(exposure.asdf_bytes, exposure.path.name)
        if needs.times and exposure.meta.measurement_time is None is exposure.meta.exposure_time:
            raise ExposureError(
                f"{exposure.path}: has neither TMEASURE nor XPOSURE, expected one of them to "
                "weight by (resample.weight_type=exptime)"
            )
    if needs.pixels and (science or strict) and not _has_usable_pixel(file):
        raise ExposureError(
            f"{exposure.path}: no integration has a usable pixel (finite and not "
            "flagged DO_NOT_USE)"
        )
    return exposure


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
        wcss = [read_wcs(e.asdf_bytes, e.path.name) for e in found]
        metas, shapes = [e.meta for e in found], [e.shape for e in found]
        layout = logging.getLogger("gpucoron.io.wcs.layout")
        layout.disabled = True  # what it says is said again when the work is done
        try:
            if len(group) == 1 or not skip_bad:
                output_wcs(wcss, metas, shapes, **needs.grid)
            elif needs.grid.get("output_shape") is None and not needs.grid.get("output_wcs_file"):
                check_outlines(wcss, metas, shapes)
        finally:
            layout.disabled = False

    science = [m for m in own if m.exptype == "science"]
    if not skip_bad:
        may_combine(own)
        if needs.grid is not None:
            may_lie_together(science)
        if needs.pixels:
            _check_references(association, product)
        return product
    bad |= _minority(own, may_combine)
    bad |= _contradicting([m for m in own if m not in bad], may_combine)
    if needs.grid is not None:
        science = [m for m in science if m not in bad]
        bad |= _unfit(science, may_lie_together)
        bad |= _minority([m for m in science if m not in bad], may_lie_together)
    return _without(association, product, bad)


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


def _contradicting(members: Sequence[Member], check) -> dict[Member, str]:
    """Return the members that do not go with an earlier one: both have what the first lacks."""
    kept: list[Member] = []
    bad = {}
    for member in members:
        problems = (_problem(check, [one, member]) for one in kept)
        if problem := next(filter(None, problems), ""):
            bad[member] = problem
        else:
            kept.append(member)
    return bad


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
