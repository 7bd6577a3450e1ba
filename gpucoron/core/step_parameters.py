"""Parameters of each step with the names and defaults of the jwst package, validated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gpucoron.core.star_flux import flux_density
from gpucoron.core.validators import (
    Check,
    bit_flags,
    boolean,
    choice,
    circles,
    file_name,
    fill_value,
    integer,
    integers,
    length,
    names,
    number,
    optional,
    pair,
    pairs,
    thresholds,
)
from gpucoron.errors import ParameterError

__all__ = [
    "MODES",
    "MOST_MODES",
    "SECTIONS",
    "STEPS",
    "AlignRefs",
    "Analysis",
    "Klip",
    "OutlierDetection",
    "Resample",
    "StackRefs",
]

#: Which images the PSF of a science exposure is made of.
MODES = ("rdi", "adi", "adi+rdi", "roll")
#: KL modes by default, where there are references enough: the jwst package's number.
MOST_MODES = 50


def _parameter(default: Any, check: Check, text: str) -> Any:
    return field(default=default, metadata={"check": check, "text": text})


@dataclass(frozen=True)
class _Section:
    """Base of step parameters; validates every field."""

    step: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            try:
                checked = item.metadata["check"](value)
            except ValueError as problem:
                name = f"{self.step}.{item.name}"
                raise ParameterError(f"{name} is {value!r}; {problem}") from None
            object.__setattr__(self, item.name, checked)


@dataclass(frozen=True)
class _Step(_Section):
    """Base of the parameters of a step that can be skipped."""

    skip: bool = _parameter(False, boolean, "skip the step")


@dataclass(frozen=True)
class OutlierDetection(_Step):
    """Parameters of outlier_detection."""

    step = "outlier_detection"

    snr: str = _parameter(
        "5.0 4.0", thresholds, "threshold in units of ERR; only the first number is used"
    )
    maskpt: float = _parameter(
        0.7,
        number("a number from 0 to 1", lambda x: 0 <= x <= 1),
        "relative weight below which a pixel is not used",
    )
    good_bits: str = _parameter("~DO_NOT_USE", bit_flags, "DQ flags that a good pixel may carry")
    save_intermediate_results: bool = _parameter(
        False, boolean, "write the median image of each exposure"
    )

    @property
    def threshold(self) -> float:
        """The first number of `snr`, the only one that is used."""
        return float(self.snr.split()[0])


@dataclass(frozen=True)
class StackRefs(_Step):
    """Parameters of stack_refs."""

    step = "stack_refs"


@dataclass(frozen=True)
class AlignRefs(_Step):
    """Parameters of align_refs."""

    step = "align_refs"

    align: str = _parameter(
        "joint",
        choice("joint", "each", "first"),
        "position of each image, fit of each pair, or first only",
    )
    median_box_length: int = _parameter(
        3, integer(0), "side (px) of the box whose median replaces bad pixels"
    )
    bad_bits: str = _parameter("DO_NOT_USE", bit_flags, "DQ flags that make a pixel bad")
    star: tuple[float, ...] | None = _parameter(
        None,
        optional(
            pairs(number(), "x and y in pixels counted from 1, or x and y of several exposures")
        ),
        "the star in the first (or each) exposure, x and y from 1",
    )
    star_model: str = _parameter(
        "", file_name, "images of a star to find the star by; replace the optics"
    )
    exclude: tuple[tuple[float, float, float], ...] | None = _parameter(
        None,
        optional(circles(300.0)),
        "known sources to mask: arcsec east, north, and radius",
    )
    psfmask_center: str = _parameter(
        "file",
        choice("file", "star"),
        "leave the hole of the psfmask, or move it onto the star",
    )

    @property
    def stars(self) -> tuple[tuple[float, float], ...]:
        """`star` as pairs: none, one, or one for each science exposure."""
        values = self.star or ()
        return tuple(zip(values[::2], values[1::2], strict=True))


@dataclass(frozen=True)
class Klip(_Step):
    """Parameters of klip."""

    step = "klip"

    truncate: int | tuple[int, ...] | None = _parameter(
        None,
        optional(integers(0, 99_999)),
        "number of KL modes, by default as many as the references allow; several give a psfsub "
        "and an i2d each",
    )
    mode: str = _parameter(
        "auto",
        choice("auto", *MODES),
        "references: psf members (rdi), other rolls (adi), both (adi+rdi), or the mean of the "
        "other rolls (roll)",
    )
    movement: float = _parameter(
        1.0,
        number("a number of pixels of 0 or more", lambda x: x >= 0),
        "adi: least movement (px) of a source between an integration and its references",
    )
    exclude_reference: tuple[str, ...] | None = _parameter(
        None,
        optional(names),
        "exposures or visits that are not used as references",
    )
    annuli: int = _parameter(
        1, integer(1, 10_000), "annuli about the star, each with KL modes of its own"
    )
    subsections: int = _parameter(1, integer(1, 10_000), "sections of each annulus")
    annuli_spacing: str = _parameter(
        "constant",
        choice("constant", "log", "linear"),
        "widths of the annuli: constant, or growing outwards as log or linear",
    )
    iwa: float | str = _parameter(
        0.0, length, "inner radius of the annuli, pixels or as 0.5arcsec; NaN inside"
    )
    owa: float | str | None = _parameter(
        None, optional(length), "outer radius, likewise; NaN outside; by default the whole image"
    )
    optimise: float | str = _parameter(
        0.0, length, "distance from a zone up to which pixels take part in its KL modes"
    )
    guard: float | str = _parameter(
        0.0,
        length,
        "distance from a zone, smaller than klip.optimise, up to which pixels, the zone's own "
        "included, take no part in its KL modes, so that a companion in it does not",
    )
    maxnumbasis: int | None = _parameter(
        None,
        optional(integer(1)),
        "most references of an integration in a zone: those most correlated with it",
    )
    subtract_model: str = _parameter(
        "",
        file_name,
        "image of a disk on the sky, left out while the PSF is fitted, and put back",
    )

    @property
    def zoned(self) -> bool:
        """Whether KLIP is done in zones, or with references chosen for each integration."""
        return bool(
            max(self.annuli, self.subsections) > 1 or self.iwa or self.owa or self.maxnumbasis
        )

    def truncations(self, *references: Sequence[int]) -> tuple[int, ...]:
        """Return the numbers of KL modes that are used.

        Parameters
        ----------
        *references : sequence of int
            Integrations of each reference exposure; several where science exposures have different
            references. The fewest count.

        Returns
        -------
        tuple of int
            Those asked for, in that order, no more than there are references. Without any, 50, or
            fewer so that leaving out the largest exposure leaves more references than modes. With
            the mode "roll", 0.
        """
        if self.mode == "roll":
            return (0,)
        return min((self._truncations(counts) for counts in references), key=max)

    def _truncations(self, references: Sequence[int]) -> tuple[int, ...]:
        total = sum(references)
        if self.truncate is not None:
            wanted = self.truncate if isinstance(self.truncate, tuple) else (self.truncate,)
            return tuple(dict.fromkeys(min(k, total) for k in wanted))
        left = total - max(references, default=0) if len(references) > 1 else total
        return (max(1, min(MOST_MODES, left - 1)),)


@dataclass(frozen=True)
class Resample(_Step):
    """Parameters of resample."""

    step = "resample"

    pixfrac: float = _parameter(
        1.0,
        number("a number from 0 to 1", lambda x: 0 <= x <= 1),
        "side of the drop, in input pixels; lanczos ignores it",
    )
    kernel: str = _parameter(
        "square",
        choice("square", "point", "turbo", "gaussian", "lanczos2", "lanczos3"),
        "square, point, turbo, gaussian, lanczos2 or lanczos3",
    )
    fillval: str = _parameter("NAN", fill_value, "value of output pixels without input")
    weight_type: str = _parameter(
        "ivm", choice("ivm", "exptime"), "weights: ivm (1 / read-noise variance) or exptime"
    )
    center: str = _parameter(
        "star",
        choice("star", "wcs"),
        "combine about the star, if measured, or by the GWCSs",
    )
    output_shape: tuple[int, int] | None = _parameter(
        None, optional(pair(integer(1), "two integers, nx and ny")), "size of the output, nx and ny"
    )
    crpix: tuple[float, float] | None = _parameter(
        None,
        optional(pair(number(), "two numbers, x and y")),
        "reference pixel of the output, x and y from 0",
    )
    crval: tuple[float, float] | None = _parameter(
        None,
        optional(pair(number(), "two numbers in degrees, RA and Dec")),
        "sky position of crpix, RA and Dec in degrees",
    )
    rotation: float | None = _parameter(
        None, optional(number()), "position angle of the y axis, degrees east of north"
    )
    pixel_scale_ratio: float = _parameter(
        1.0,
        number("a number above 0, at least 1e-9", lambda x: x >= 1e-9),
        "output pixel scale / input pixel scale",
    )
    pixel_scale: float | None = _parameter(
        None,
        optional(number("a number of arcsec above 0, at least 1e-9", lambda x: x >= 1e-9)),
        "output pixel scale, arcsec; overrides pixel_scale_ratio",
    )
    output_wcs: str = _parameter(
        "", file_name, "ASDF file of the output WCS; overrides most of these"
    )


@dataclass(frozen=True)
class Analysis(_Section):
    """Parameters of what is measured on the products."""

    step = "analysis"

    star_flux: float | None = _parameter(
        None, optional(flux_density), "the star's flux density, Jy, or as 350mJy"
    )
    star_spectrum: str = _parameter("", file_name, "the star's spectrum: file of um and Jy")
    filter_curve: str = _parameter(
        "", file_name, "transmission of the filter for star_spectrum: file of um and values"
    )
    star_magnitude: float | None = _parameter(
        None, optional(number()), "the star's Vega magnitude in the filter"
    )
    vega_zero_point: float | None = _parameter(
        None,
        optional(number("a flux density above 0 in Jy", lambda x: x > 0)),
        "flux density of magnitude 0 in the filter, Jy",
    )
    psf: str = _parameter(
        "", file_name, "images of an off-axis source; replace those of the optics"
    )


STEPS: dict[str, type[_Step]] = {
    c.step: c for c in (OutlierDetection, StackRefs, AlignRefs, Klip, Resample)
}
#: The steps, and what follows them.
SECTIONS: dict[str, type[_Section]] = {**STEPS, Analysis.step: Analysis}
