"""Step parameters with the names and defaults of the jwst package, validated."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpucoron.core.step_parameters import (
    MODES,
    SECTIONS,
    STEPS,
    AlignRefs,
    Analysis,
    Klip,
    OutlierDetection,
    Resample,
    StackRefs,
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
