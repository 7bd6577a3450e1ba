"""What ``gpucoron info`` says of an association, a folder of exposures, or a FITS file."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.core.text import format_table
from gpucoron.errors import ExposureError, InputError, plural

if TYPE_CHECKING:
    from gpucoron.io.association import Association, Product
    from gpucoron.io.exposure_facts import ExposureFacts

_FITS = re.compile(r"\.(fits?|fts)(\.gz)?$", re.IGNORECASE)
_FAR_PX = 20.0  # between star and mask: so far no acquisition misses
_WIDTH = 100
_LONGEST_TARGET = 12  # characters in the table
_HEADER = ("", "target", "roll", "date (UTC)", "n", "time", "dither", "star-mask", "exposure")
_UNITS = ("", "", "deg", "", "", "s", "mas", "px", "")
_RIGHT = (2, 4, 5, 6, 7)


def describe(path: str | Path) -> Iterator[str]:
    """Describe an association, a folder of exposures, or a FITS file, in lines."""
    path = Path(path)
    if path.is_dir():
        return _folder_lines(path)
    if _FITS.search(path.name):
        return _file_lines(path)
    return association_lines(path)


# ---- associations and folders


def association_lines(path: str | Path) -> Iterator[str]:
    """Describe an association from its JSON and the headers of its members."""
    from gpucoron.io.association import read_association

    association = read_association(path, check_files=False, need_references=False)
    yield f"{association.table_name}:"
    yield (
        f"  program {association.program or '?'}, target {association.target or '?'}, id "
        f"{association.asn_id}, pool {association.asn_pool or '?'}, "
        f"{plural(len(association.products), 'product')}"
    )
    for product in association.products:
        yield ""
        yield from _product_lines(association, product)


def _product_lines(association: Association, product: Product) -> Iterator[str]:
    from gpucoron.io.exposure_facts import read_facts
    from gpucoron.io.product_naming import standard_product_name

    facts: dict[str, list[ExposureFacts]] = {"science": [], "psf": []}
    odd = []
    for member in product.used:
        try:
            facts[member.exptype].append(read_facts(member.path, member.exptype))
        except InputError as problem:
            reason = str(problem).removeprefix(f"{member.path}: ")
            odd.append(f"{member.expname} ({member.exptype}): {reason}")
    for member in product.ignored:
        missing = "" if member.path.exists() else " and is missing"
        odd.append(f"{member.expname}: {member.exptype}, which is not used{missing}")
    name = product.name
    if name is None:
        meta = facts["science"][0].meta if facts["science"] else None
        standard = "no name" if meta is None else standard_product_name(association, meta)
        name = f"{standard} (the standard name)"
    yield f"product {name}"
    yield from _table(facts["science"], facts["psf"])
    yield from _notes([*odd, *_odd(facts["science"], facts["psf"])])


def _folder_lines(path: Path) -> Iterator[str]:
    """Describe the associations that `gpucoron asn` would make of a folder."""
    from gpucoron.io.association_making import find_exposures, make_associations

    proposals, left_out = make_associations(find_exposures([path]))
    yield f"{path}: {plural(len(proposals), 'association')} can be made (gpucoron asn)"
    for proposal in proposals:
        yield ""
        yield f"product {proposal.association.products[0].name}"
        yield from _table(proposal.science, proposal.references)
        yield from _notes([*_odd(proposal.science, proposal.references), *proposal.notes])
    if left_out:
        yield ""
        yield f"in none of them, {plural(len(left_out), 'file')}:"
        yield from _wrapped("  ", (f"{name}: {reason}" for name, _, reason in left_out))


def _notes(texts: Iterable[str]) -> Iterator[str]:
    return _wrapped("  note: ", dict.fromkeys(texts))


def _wrapped(start: str, texts: Iterable[str]) -> Iterator[str]:
    """Yield texts as lines that fit the width, each after `start`; names are not broken."""
    for text in texts:
        yield from textwrap.wrap(
            text,
            _WIDTH,
            initial_indent=start,
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _table(science: Sequence[ExposureFacts], references: Sequence[ExposureFacts]) -> Iterator[str]:
    """Yield the optics, a line for each exposure, and their numbers."""
    both = [*science, *references]
    if not both:
        return
    for optics in dict.fromkeys(facts.optics for facts in both):
        yield f"  {optics}"
    roots = [facts.exposure.root for facts in both]
    endings = {root.rpartition("_")[2] for root in roots}  # the detector, which optics has
    if len(endings) == 1:
        ending = f"_{endings.pop()}"
        roots = [root.removesuffix(ending) or root for root in roots]
    rows = [_UNITS, *((*_row(facts), root) for facts, root in zip(both, roots, strict=True))]
    yield from (f"  {line}" for line in format_table(rows, _HEADER, _RIGHT))
    counts = [sum(facts.exposure.shape[0] for facts in own) for own in (science, references)]
    ny, nx = both[0].exposure.shape[1:]
    yield (
        f"  {counts[0]} science and {counts[1]} reference integrations of {ny} x {nx} pixels: "
        f"{sum(counts)} images to register, {counts[0] * counts[1]} pairs"
    )
    if science:
        yield from _star_line(science[0])


def _star_line(first: ExposureFacts) -> Iterator[str]:
    from gpucoron.io.star import expected_star

    if star := expected_star(first.exposure):
        (x, y), keywords = star
        yield f"  star at x, y = {x:.1f}, {y:.1f} (pixels from 1) by {keywords}; --star changes it"


def _row(facts: ExposureFacts) -> tuple[str, ...]:
    away = _star_from_mask(facts)
    if away is None:
        star = "?"
    else:
        star = "far" if math.hypot(*away) > _FAR_PX else _pair(away, 1)
    dither = "?" if facts.dither is None else _pair([1000 * d for d in facts.dither], 0)
    return (
        facts.exposure.exptype[:3],  # sci, psf
        (facts.target or "?")[:_LONGEST_TARGET],
        "?" if facts.roll is None else f"{facts.roll:.1f}",
        (facts.begin or "?").replace("T", " ")[:16],
        str(facts.exposure.shape[0]),
        "?" if facts.seconds is None else f"{facts.seconds:.0f}",
        dither,
        star,
    )


def _pair(values: Iterable[float], digits: int) -> str:
    """Return two numbers, rounded, without negative zeros."""
    return " ".join(f"{round(value, digits) + 0.0:.{digits}f}" for value in values)


def _star_from_mask(facts: ExposureFacts) -> tuple[float, float] | None:
    """Return where the GWCS has TARG_RA, TARG_DEC, relative to the coronagraph mask: x, y px."""
    from gpucoron.io.star import target_pixel
    from gpucoron.optics.instruments import optics_of

    optics, star = optics_of(facts.meta), target_pixel(facts.exposure)
    if optics is None or star is None:
        return None
    x, y = optics.mask_centre
    return star[0] - 1 - x, star[1] - 1 - y


def _odd(science: Sequence[ExposureFacts], references: Sequence[ExposureFacts]) -> Iterator[str]:
    """Yield what is odd about the members of a product."""
    from gpucoron.io.agreement import check_members
    from gpucoron.io.association_making import notes_on

    both = [*science, *references]
    for other in both[1:]:
        try:
            check_members([both[0].exposure, other.exposure])
        except ExposureError as problem:
            yield str(problem)
    for facts in both:
        wanted = facts.exposure.exptype == "psf"
        if facts.is_psf is not None and facts.is_psf != wanted:
            says = "true" if facts.is_psf else "false"
            yield f"{facts.path.name} is {facts.exposure.exptype}, but its IS_PSF is {says}"
    for other in science[1:]:
        if not other.same_target(science[0]):
            yield (
                f"{other.path.name} is science of {other.target or '?'}, but "
                f"{science[0].path.name} of {science[0].target or '?'}"
            )
    twice = {facts.path for facts in science} & {facts.path for facts in references}
    for path in sorted(twice):
        yield f"{path.name} is science and psf: it is a reference of the other rolls (--mode adi)"
    if any(_row(facts)[-1] == "far" for facts in both):
        yield (
            f"far: TARG_RA, TARG_DEC are more than {_FAR_PX:g} px from the mask by the GWCS, as "
            "where proper motion was not applied"
        )
    if science:
        yield from notes_on(science, references)


# ---- FITS files


def _file_lines(path: Path) -> Iterator[str]:
    """Describe an exposure or a product from its headers."""
    from gpucoron.io.fits.reading import open_fits

    file = open_fits(path, InputError)
    primary, sci = file.hdus[0].header, file.find("SCI")
    headers = (primary,) if sci is None else (sci.header, primary)
    yield f"{path.name}: {plural(len(file.hdus), 'HDU')}, {file.size / 1e6:.1f} MB"
    rows = [
        (
            hdu.name,
            "x".join(map(str, hdu.shape)) or "-",
            _kind(hdu),
            str(hdu.header.get("BUNIT", "")).strip(),
        )
        for hdu in file.hdus
    ]
    yield from (f"  {line}" for line in format_table(rows, ("HDU", "shape", "type", "unit")))
    yield from (f"  {line}" for line in format_table(list(_facts(headers))))


_SHOWN = {
    "target": ("TARGPROP", "TARGNAME"),
    "program": ("PROGRAM",),
    "reference star": ("IS_PSF",),
    "optics": (),
    "exposure type": ("EXP_TYPE",),
    "begun": ("DATE-BEG", "DATE-OBS"),
    "roll angle (deg)": ("ROLL_REF", "PA_V3"),
    "exposure time (s)": ("XPOSURE", "EFFEXPTM"),
    "dither (arcsec)": ("XOFFSET", "YOFFSET"),
    "star x, y (from 1)": ("STARCENX", "STARCENY"),
    "mask x, y (from 1)": ("MASKCENX", "MASKCENY"),
    "association": ("ASNTABLE",),
    "written by gpucoron": ("GPUCORON",),
    "calibrated by": ("CAL_VER",),
}
_PAIRS = ("XOFFSET", "STARCENX", "MASKCENX")
_STEPS = {
    "S_OUTLIR": "outlier_detection",
    "S_PSFSTK": "stack_refs",
    "S_PSFALI": "align_refs",
    "S_KLIP": "klip",
    "S_RESAMP": "resample",
}


def _facts(headers: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    def value(keyword: str) -> Any:
        return next((h[keyword] for h in headers if h.get(keyword) not in (None, "")), None)

    for label, keywords in _SHOWN.items():
        found = [value(keyword) for keyword in keywords]
        if label == "optics":
            names = ("INSTRUME", "DETECTOR", "FILTER", "PUPIL", "CORONMSK", "SUBARRAY")
            yield label, " ".join(str(v) for name in names if (v := value(name)) is not None)
        elif keywords[0] in _PAIRS and None not in found:
            yield label, ", ".join(map(_number, found))
        elif keywords[0] not in _PAIRS and (first := _first(found)) is not None:
            yield label, str(first)
    done = [f"{name} ({value(key)})" for key, name in _STEPS.items() if value(key) is not None]
    if done:
        yield "steps", ", ".join(done)


def _kind(hdu: Any) -> str:
    """Return the type of an HDU's values in words."""
    if not hdu.is_image:
        return "table"
    return "" if hdu.empty else f"{'float' if hdu.bitpix < 0 else 'int'}{abs(hdu.bitpix)}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)
