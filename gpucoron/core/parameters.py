"""Step parameters with the names and defaults of the jwst package, validated."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    "AlignRefs",
    "Analysis",
    "Klip",
    "OutlierDetection",
    "Parameters",
    "Resample",
    "StackRefs",
    "MODES",
    "OWN",
    "PRESETS",
    "SECTIONS",
    "SHORT",
    "STEPS",
    "describe_parameters",
]

#: What a preset changes before anything the user sets.
PRESETS: dict[str, dict[str, Any]] = {
    "jwst": {
        "align_refs.align": "first",
        "klip.truncate": 50,
        "klip.mode": "rdi",
        "resample.center": "wcs",
    }
}
#: Which images the PSF of a science exposure is made of.
MODES = ("rdi", "adi", "adi+rdi", "roll")
#: KL modes by default, where there are references enough: the jwst package's number.
MOST_MODES = 50
#: Parameters that the jwst package does not have.
OWN = (
    "align_refs.align",
    "align_refs.star",
    "align_refs.star_model",
    "align_refs.exclude",
    "align_refs.psfmask_center",
    "klip.mode",
    "klip.movement",
    "klip.exclude_reference",
    "klip.annuli",
    "klip.subsections",
    "klip.annuli_spacing",
    "klip.iwa",
    "klip.owa",
    "klip.optimise",
    "klip.guard",
    "klip.maxnumbasis",
    "klip.subtract_model",
    "resample.center",
    "analysis.star_flux",
    "analysis.star_spectrum",
    "analysis.filter_curve",
    "analysis.star_magnitude",
    "analysis.vega_zero_point",
    "analysis.psf",
)
#: Names of parameters that stand alone: ``align="first"``, ``--star 151,175``.
SHORT = {
    "align": "align_refs.align",
    "star": "align_refs.star",
    "star_model": "align_refs.star_model",
    "exclude": "align_refs.exclude",
    "psfmask_center": "align_refs.psfmask_center",
    "mode": "klip.mode",
    "exclude_reference": "klip.exclude_reference",
    "subtract_model": "klip.subtract_model",
    "star_flux": "analysis.star_flux",
    "star_spectrum": "analysis.star_spectrum",
    "filter_curve": "analysis.filter_curve",
    "star_magnitude": "analysis.star_magnitude",
    "vega_zero_point": "analysis.vega_zero_point",
    "psf": "analysis.psf",
}


def _parameter(default: Any, check: Check, text: str) -> Any:
    return field(default=default, metadata={"check": check, "text": text})


# ---- the parameters of each step


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


@dataclass(frozen=True)
class Parameters:
    """The parameters of all steps, and the preset.

    `from_sources` applies a preset's own defaults (``jwst`` aligns to the first integration);
    constructing the class with ``preset="jwst"`` sets the name only.
    """

    outlier_detection: OutlierDetection = field(default_factory=OutlierDetection)
    stack_refs: StackRefs = field(default_factory=StackRefs)
    align_refs: AlignRefs = field(default_factory=AlignRefs)
    klip: Klip = field(default_factory=Klip)
    resample: Resample = field(default_factory=Resample)
    analysis: Analysis = field(default_factory=Analysis)
    preset: str | None = None

    def __post_init__(self) -> None:
        for name, kind in SECTIONS.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise ParameterError(f"{name} is {value!r}; expected {kind.__name__}(...)")
        object.__setattr__(self, "preset", _check_preset(self.preset))
        if self.like_jwst and self.klip.zoned:
            raise ParameterError(
                "klip is in zones (annuli, subsections, iwa, owa or maxnumbasis), which the preset "
                "jwst does not have; expected one or the other"
            )

    @classmethod
    def from_sources(
        cls,
        files: Iterable = (),
        sets: Iterable[str] = (),
        preset: str | None = None,
        keywords: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> Parameters:
        """Combine parameters from files, text and keywords; later ones override earlier ones.

        Parameters
        ----------
        files : iterable of path
            Parameter files, TOML or the jwst package's ASDF ``pars-*``; later ones win.
        sets : iterable of str
            ``"klip.truncate=10"``, as ``--set`` takes them.
        preset : str, optional
            ``"jwst"``, or None for the preset that a file names. Its defaults lie beneath
            everything that files, `sets` and `keywords` say.
        keywords : mapping, or several of them, optional
            ``klip_truncate=10``, ``klip={"truncate": 10}``, ``{"klip.truncate": 10}``,
            ``klip=Klip(truncate=10)``, or ``align="first"`` and the other names of `SHORT`, in any
            mixture. None as the value of one of these or of ``preset`` says nothing.

        Raises
        ------
        ParameterError
            A step, parameter or value that does not exist; the text names where it was set.
        """
        given: list[tuple[str, Any, str]] = []
        for path in files:
            from gpucoron.io.parameter_files import read_parameters

            given += [(key, value, str(path)) for key, value in read_parameters(path)]
        for text in sets:
            given.append((*_split_assignment(text), f"--set {text}"))
        several = [keywords or {}] if isinstance(keywords, Mapping | None) else keywords
        for key, value in (item for some in several for item in _flatten(some)):
            if value is not None or key not in (*SHORT, "preset"):
                given.append((key, value, ""))
        named = [(value, where) for key, value, where in given if key == "preset"]
        if preset is None and named:
            preset = _located(named[-1][1], _check_preset, named[-1][0])
        result = cls(preset=preset)
        for key, value in PRESETS.get(result.preset or "", {}).items():
            result = result.with_value(key, value)
        for key, value, where in given:
            if key != "preset":
                result = _located(where, result.with_value, key, value)
        return result

    def with_value(self, key: str, value: Any) -> Parameters:
        """Return a copy with one parameter changed: ``klip.truncate``, or a name of `SHORT`."""
        step, name = _resolve(key)
        changed = dataclasses.replace(getattr(self, step), **{name: value})
        return dataclasses.replace(self, **{step: changed})

    @property
    def like_jwst(self) -> bool:
        """Whether the steps reproduce the defects of the jwst package."""
        return self.preset == "jwst"

    @property
    def grid(self) -> dict[str, Any]:
        """The keywords of the output grid, as `gpucoron.io.wcs.output_wcs` takes them."""
        names = "pixel_scale pixel_scale_ratio rotation crpix crval output_shape".split()
        given = {name: getattr(self.resample, name) for name in names}
        return given | {
            "output_wcs_file": self.resample.output_wcs,
            "by_s_region": self.like_jwst,
        }

    def flat(self) -> dict[str, Any]:
        """Return every parameter under its full name, ``{"klip.truncate": 50, ...}``."""
        values = {} if self.preset is None else {"preset": self.preset}
        for step in SECTIONS:
            for item in dataclasses.fields(getattr(self, step)):
                values[f"{step}.{item.name}"] = getattr(getattr(self, step), item.name)
        return values

    def to_toml(self) -> str:
        """Return these parameters as the text of a TOML parameter file."""
        lines = ["# Parameters of gpucoron; read with --params"]
        if self.preset is not None:
            lines.append(f"preset = {_toml(self.preset)}")
        for step in SECTIONS:
            lines += ["", f"[{step}]"]
            for item in dataclasses.fields(getattr(self, step)):
                value = getattr(getattr(self, step), item.name)
                unset = value is None
                entry = f"# {item.name} is not set" if unset else f"{item.name} = {_toml(value)}"
                lines.append(f"{entry:<40s} # {item.metadata['text']}")
        return "\n".join(lines) + "\n"


def describe_parameters() -> list[tuple[str, Any, str]]:
    """Return (full name, default, what it does) of every parameter, in the order of the steps."""
    return [
        (f"{name}.{item.name}", item.default, item.metadata["text"])
        for name, kind in SECTIONS.items()
        for item in dataclasses.fields(kind)
    ]


def _check_preset(value: object) -> str | None:
    name = str(value).strip().lower()
    if value is None or name in PRESETS:
        return None if value is None else name
    raise ParameterError(f"preset is {value!r}; expected {' or '.join(map(repr, PRESETS))}")


def _located(where: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function; prefix a ParameterError with the source of the value."""
    try:
        return function(*args)
    except ParameterError as problem:
        if not where:
            raise
        raise ParameterError(f"{where}: {problem}") from None


def _split_assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ParameterError(f"--set {text}: expected STEP.PARAMETER=VALUE, as klip.truncate=10")
    return key.strip(), value.strip()


def _flatten(keywords: Mapping[str, Any]) -> list[tuple[str, Any]]:
    pairs = []
    for key, value in keywords.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, Mapping):
            pairs += [(f"{key}.{name}", inner) for name, inner in value.items()]
        else:
            pairs.append((key, value))
    return pairs


def _resolve(key: str) -> tuple[str, str]:
    """Split ``klip.truncate`` or ``klip_truncate`` into step and parameter, both known."""
    key = SHORT.get(key, key)
    step, dot, name = key.partition(".")
    if not dot:
        step = next((s for s in SECTIONS if key.startswith(s + "_")), "")
        name = key[len(step) + 1 :] if step else key
    if step not in SECTIONS:
        what = f"step {step!r}" if dot else f"parameter {key!r}"
        raise ParameterError(f"there is no {what}; {_nearest(key, step, name)}")
    if name not in _names(step):
        raise ParameterError(f"{step} has no parameter {name!r}; {_nearest(key, step, name)}")
    return step, name


def _names(step: str) -> list[str]:
    return [item.name for item in dataclasses.fields(SECTIONS[step])]


def _nearest(key: str, step: str, name: str) -> str:
    """Suggest the nearest parameter, or list all."""
    full = [f"{s}.{n}" for s in SECTIONS for n in _names(s)]
    of_step = [f"{step}.{n}" for n in _names(step)] if step in SECTIONS else []
    homes = [f for f in full if f.endswith(f".{name}") and not f.endswith(".skip")]
    close = (
        [f"{step}.{n}" for n in difflib.get_close_matches(name, _names(step))]
        if of_step
        else difflib.get_close_matches(key, full, n=1, cutoff=0.7)
    ) or homes
    if close:
        return f"did you mean {close[0]!r}?"
    return "expected one of " + ", ".join(_names(step) if of_step else SECTIONS)


def _toml(value: object) -> str:
    """Return a value as TOML, which writes all that parameters can be as JSON does."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
