"""Looking at all members before any work: those that cannot be used, and those that do not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.errors import ExposureError, InputError
from gpucoron.io.agreement import check_members, warn_of_copies, warn_of_differences
from gpucoron.io.association import Association, LeftOut, Member, Product
from gpucoron.io.error_planes import ErrorPlanes
from gpucoron.io.exposure_wcs import settle_wcs
from gpucoron.io.exposures import Exposure, exposure_of, science_hdu
from gpucoron.io.fits.checksums import check_sums
from gpucoron.io.fits.reading import FitsFile, open_fits
from gpucoron.io.second_process import in_second_process
from gpucoron.io.wcs import check_outlines, output_wcs, read_wcs

if TYPE_CHECKING:
    from gpucoron.io.wcs import OutputWcs

__all__ = ["Exposures", "Requirements", "geometry", "inspect_members", "output_grid"]

log = logging.getLogger("gpucoron")

_UNUSED = {"ERR": "it is not used, and no pixel is flagged as an outlier"}
_SECONDS = (1e-3, 1e8)  # a shorter or longer exposure time cannot be right: a frame, three years
_right: set[tuple] = set()  # files whose sums have been checked: a worker reads them many times

Exposures = dict[tuple[Path, str], Exposure]  # by path and exptype, without their pixels


def _key(member: Member) -> tuple[Path, str]:
    return member.path, member.exptype


@dataclass(frozen=True)
class Requirements:
    """What a run needs of its members."""

    grid: Mapping[str, Any] | None  # keywords of `output_wcs`; None where nothing is combined
    times: bool  # science exposures are weighted by their exposure times
    values: bool  # pixels may be read: ERR and VAR_* are looked at
    pixels: bool  # there must be usable ones
    nan_spoils: bool  # a pixel cannot be used where ERR or a VAR_* is NaN
    like_jwst: bool  # ERR and VAR_* that tell nothing are used, too
    checksums: bool  # DATASUM and CHECKSUM, where the headers have them, must be right

    @classmethod
    def of(cls, parameters: Any, checksums: bool = True, pixels: bool = True) -> Requirements:
        """Return what the steps need with these `gpucoron.Parameters`."""
        resample = parameters.resample
        return cls(
            grid=None if resample.skip else parameters.grid,
            times=resample.weight_type == "exptime",
            values=pixels,
            pixels=pixels and not parameters.klip.skip,
            nan_spoils=not parameters.outlier_detection.skip,
            like_jwst=parameters.like_jwst,
            checksums=checksums,
        )


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
    odd: dict[str, list[str]] = {}  # what is odd, and in which files
    for done, (key, member) in enumerate(members.items(), start=1):
        try:
            exposures[key] = _look_at(member, needs, skip_bad, odd)
        except InputError as problem:
            if not skip_bad:
                raise
            reasons[key] = _reason(problem, member)
        progress(done, len(members), member.path.name)
    if needs.grid is not None:  # last: the second process starts meanwhile
        for key in [k for k, found in exposures.items() if found.exptype == "science"]:
            try:
                exposures[key] = settle_wcs(exposures[key], needs.grid["by_s_region"], odd)
            except InputError as problem:
                if not skip_bad:
                    raise
                reasons[key] = _reason(problem, members[key])
                del exposures[key]
    for text, names in odd.items():
        log.warning("%s: %s", ", ".join(names), text)
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


def _look_at(
    member: Member, needs: Requirements, strict: bool, odd: dict[str, list[str]]
) -> Exposure:
    file = open_fits(member.path, ExposureError)
    exposure = exposure_of(file, member.exptype, pixels=False)
    science = member.exptype == "science"
    if needs.checksums:
        _check_sums_once(file)
    if science and needs.grid is not None and needs.times:
        _check_time(exposure)
    if not needs.values:
        return exposure
    planes = ErrorPlanes(file, science_hdu(file))
    unused = planes.unused(science)
    if needs.pixels and (science or strict):
        spoil = _spoiling(planes, unused, needs)
        if problem := planes.why_unusable(spoil):
            raise ExposureError(f"{exposure.path}: {problem}")
    if needs.like_jwst:
        return exposure
    for name, problem in unused.items():
        odd.setdefault(f"{problem}; {_UNUSED.get(name, 'it is left out')}", []).append(
            file.path.name
        )
    return replace(exposure, unused=tuple(unused))


def _check_time(exposure: Exposure) -> None:
    """Raise ExposureError for an exposure time that cannot be a weight."""
    time = exposure.meta.weighing_time
    if time is None:
        raise ExposureError(
            f"{exposure.path}: has neither TMEASURE nor XPOSURE, expected one of them to "
            "weight by (resample.weight_type=exptime)"
        )
    least, most = _SECONDS
    if not least <= time <= most:
        keyword = "XPOSURE" if exposure.meta.measurement_time is None else "TMEASURE"
        raise ExposureError(
            f"{exposure.path}: {keyword} is {time:g} s, expected {least:g} to {most:g} s "
            "to weight by (resample.weight_type=exptime)"
        )


def _spoiling(
    planes: ErrorPlanes, unused: Mapping[str, str], needs: Requirements
) -> tuple[str, ...]:
    """Return which of ERR and VAR_* make a pixel bad where they are NaN."""
    if not needs.nan_spoils:
        return ()
    return tuple(name for name in planes.names if needs.like_jwst or name not in unused)


def _check_sums_once(file: FitsFile) -> None:
    state = file.path.stat()
    key = (file.path.resolve(), state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if key not in _right:
        check_sums(file)
        _right.add(key)


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
                check_outlines(*geometry(found), needs.grid["by_s_region"])

    science = [m for m in own if m.exptype == "science"]
    if not skip_bad:
        may_combine(own)
        if needs.grid is not None:
            may_lie_together(science)
        if needs.pixels and product.psf:
            _check_references(association, product, needs)
        return product
    bad |= _minority(own, may_combine)
    bad |= _contradicting([m for m in own if m not in bad], may_combine)
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
        return in_second_process(partial(output_wcs, **grid), *geometry(exposures))


def geometry(exposures: Sequence[Exposure]) -> tuple[list, list, list]:
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


def _check_references(association: Association, product: Product, needs: Requirements) -> None:
    problems = []
    for member in product.psf:
        file = open_fits(member.path, ExposureError)
        planes = ErrorPlanes(file, science_hdu(file))
        unused = planes.unused(science=False)
        problem = planes.why_unusable(_spoiling(planes, unused, needs))
        if not problem:
            return
        problems.append(f"{member.path.name}: {problem}")
    raise ExposureError(
        f"{association.path}: no reference integration has a usable pixel: {problems[0]}"
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
    left_out = tuple(LeftOut(m.expname, m.exptype, reason) for m, reason in bad.items())
    left = replace(
        product,
        members=tuple(m for m in product.members if m not in bad),
        left_out=(*product.left_out, *left_out),
    )
    for exptype in ("science", "psf"):
        if getattr(product, exptype) and not getattr(left, exptype):
            texts = "; ".join(f"{m.expname}: {bad[m]}" for m in bad if m.exptype == exptype)
            raise ExposureError(
                f"{association.path}: no {exptype} member can be used, expected at "
                f"least one ({texts})"
            )
    return left


def _reason(problem: Exception, member: Member) -> str:
    """Return what is wrong, without the name of the file."""
    text = str(problem)
    for start in (f"{member.path}: ", f"{member.path.name}: "):
        text = text.removeprefix(start)
    return text
