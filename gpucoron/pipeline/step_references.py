"""The references of single steps: images of psfstack and other rolls, without excluded ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpucoron.core.stack import PlaneSource
from gpucoron.errors import ParameterError, UsageError
from gpucoron.io.association import Member
from gpucoron.pipeline.references import choose_references, is_excluded

if TYPE_CHECKING:
    from gpucoron.core.parameters import Parameters
    from gpucoron.io.exposures import Exposure
    from gpucoron.io.step_products import PsfalignFile
    from gpucoron.pipeline.inputs import ProductInputs

__all__ = ["StepReferences", "not_excluded", "uses_psfstack"]

log = logging.getLogger("gpucoron")


def uses_psfstack(parameters: Parameters, paths: Sequence[Path]) -> bool:
    """Return whether a step reads psfstack, of which `paths` are given; with ADI it does not."""
    if parameters.klip.mode not in ("adi", "roll"):
        return True
    if paths:
        log.info("%s is not used: klip.mode is %s", paths[0].name, parameters.klip.mode)
    return False


def not_excluded(parameters: Parameters, paths: Sequence[Path]) -> list[Path]:
    """Return the exposures that ``klip.exclude_reference`` leaves.

    Raises
    ------
    ParameterError
        It has a name of none of them, or leaves none.
    """
    kept = [path for path in paths if not is_excluded(parameters, Member(path, "psf", path.name))]
    _check_names(parameters, paths)
    if not kept:
        raise ParameterError(
            f"klip.exclude_reference leaves none of the {len(paths)} exposures, expected 1 or more"
        )
    return kept


def _check_names(parameters: Parameters, paths: Sequence[Path], stacked: bool = False) -> None:
    klip = parameters.klip
    for name in klip.exclude_reference or ():
        alone = replace(parameters, klip=replace(klip, exclude_reference=(name,)))
        if not any(is_excluded(alone, Member(path, "psf", path.name)) for path in paths):
            known = ", ".join(dict.fromkeys(path.name for path in paths))
            expected = (
                f"the file or root name of an exposure, or jw and a visit's number, of {known}"
            )
            if not stacked:
                raise ParameterError(f"klip.exclude_reference is {name!r}, expected {expected}")
            log.warning(
                "klip.exclude_reference is %s, of which psfstack has no image (any more), expected "
                "%s; nothing is left out for it",
                *(name, expected),
            )


class StepReferences:
    """Which images are references of each science exposure of align_refs and klip.

    Parameters
    ----------
    parameters : Parameters
    own : ProductInputs
        Of the step; psfstack is its reference, if it has any.

    Attributes
    ----------
    inputs : ProductInputs
        The same, with the references chosen.
    planes : list of int
        The images of psfstack that are used.

    Raises
    ------
    GpucoronError
        No references are left.
    """

    def __init__(self, parameters: Parameters, own: ProductInputs):
        from gpucoron.io.step_products import read_sources

        self.stacked = tuple(s for e in own.references for s in read_sources(e.path, e.shape[0]))
        chosen = choose_references(parameters, own.product, own.science, own.references)
        self.inputs = replace(own, chosen=chosen)
        excluding = bool(parameters.klip.exclude_reference)
        if own.references and not self.stacked and (excluding or self.inputs.uses_rolls):
            raise UsageError(
                f"{own.references[0].path.name} has no SOURCES, which exposure each image is from; "
                "expected that of gpucoron for klip.exclude_reference and other rolls"
            )
        names = [Path(s.exposure) for s in self.stacked]
        if excluding:
            _check_names(parameters, [*names, *(e.path for e in own.science)], stacked=True)
        self.planes = [
            k
            for k, path in enumerate(names)
            if not is_excluded(parameters, Member(path, "psf", path.name))
        ]
        if names and not self.planes and not self.inputs.uses_rolls:
            raise ParameterError(
                f"klip.exclude_reference leaves no image of {own.references[0].path.name}"
            )

    @property
    def all_used(self) -> bool:
        """Whether no image of psfstack is left out."""
        return len(self.planes) == len(self.stacked)

    def of(self, exposure: Exposure, all_stacked: bool = False) -> tuple[PlaneSource, ...]:
        """Return where the references of a science exposure are from; empty where unknown."""
        stacked = range(len(self.stacked)) if all_stacked else self.planes
        rolls = self.inputs.chosen.rolls.get(exposure.root, ())
        turned = {e.root: e.shape[0] for e in self.inputs.science if e in rolls}
        return (
            *(self.stacked[k] for k in stacked),
            *(PlaneSource(root, i) for root, n in turned.items() for i in range(1, n + 1)),
        )

    def select(self, file: PsfalignFile, exposure: Exposure) -> PsfalignFile:
        """Return psfalign with those of its images that are references.

        Raises
        ------
        UsageError
            It has neither these nor those that would be without ``klip.exclude_reference``.
        """
        n, used, every = file.shape[0], self.of(exposure), self.of(exposure, True)
        if not every or n == len(used):
            return file
        if n == len(every):
            first = len(self.stacked)
            return file.select([*self.planes, *range(first, n)])
        raise UsageError(
            f"{file.path.name} has {n} references, and klip.mode and klip.exclude_reference say "
            f"{len(used)}; expected the same mode as in align_refs"
        )
