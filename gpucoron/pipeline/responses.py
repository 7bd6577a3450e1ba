"""What PSF subtraction leaves of a source in an exposure, from what a run has in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpucoron.backend.arrays import to_host
from gpucoron.ops.gram_injection import GramInjection
from gpucoron.ops.injection import KlipResponse
from gpucoron.ops.missing_pixels import rolled
from gpucoron.ops.position_answer import PositionAnswer, position_answer
from gpucoron.ops.registration import LEFT_OUT
from gpucoron.steps.klip import to_references

if TYPE_CHECKING:
    from gpucoron.core.stack import PlaneSource
    from gpucoron.ops.zones import Zones
    from gpucoron.steps.align_refs import Alignment

__all__ = [
    "References",
    "SourceResponse",
    "Subtracted",
    "answer_of",
    "basis_response",
    "gram_response",
]


class SourceResponse(NamedTuple):
    """What is left of a source in one science exposure, and how it gets into its references."""

    klip: KlipResponse | GramInjection
    #: Root names of the other rolls whose stamps the references have, and how far (y, x), px, these
    #: are moved.
    rolls: tuple[tuple[str, tuple[float, float]], ...] = ()


class References(NamedTuple):
    """Where the references of a science exposure are from."""

    sources: Sequence[PlaneSource]  # of each image
    rolls: Sequence[str]  # root names of the science exposures among them

    @property
    def groups(self) -> np.ndarray:
        """The number of each reference's roll, from 1; -1 for psf members."""
        numbers = {root: k for k, root in enumerate(self.rolls, start=1)}
        return np.array([numbers.get(s.exposure, -1) for s in self.sources], dtype=np.int64)

    def moves(self, alignment: Alignment, fits: Any) -> tuple[tuple[str, tuple[float, float]], ...]:
        """Return how far the images of each roll are moved, on average.

        `fits` are those of an integration to which the references are aligned; None where they are
        where the star is on average.
        """
        if fits is None:
            shifts = -alignment.positions.references
        else:
            shifts = -np.stack([fits["y"], fits["x"]], axis=1)
            shifts[fits["status"] == LEFT_OUT] = np.nan
        groups, found = self.groups, []
        for number, root in enumerate(self.rolls, start=1):
            own = shifts[groups == number]
            own = own[np.isfinite(own).all(axis=1)]
            y, x = own.mean(axis=0).tolist() if len(own) else (0.0, 0.0)
            found.append((root, (y, x)))
        return tuple(found)


class Subtracted(NamedTuple):
    """What was subtracted from an exposure, and how; images on the host or a GPU."""

    targets: Any  # (n, ny, nx), filled
    references: Any  # (nref, ny, nx), aligned; without their means or with them
    rows: np.ndarray  # (n, nref) or (nzones, n, nref) coefficients for the most KL modes
    weight: np.ndarray | None
    missing: Any
    offsets: np.ndarray | None  # of the targets from the references
    zones: Zones | None
    by_rolls: bool  # the mean of rolls is subtracted, not a KLIP model
    answer: PositionAnswer | None = None


def answer_of(
    targets: Any, left: Any, offsets: np.ndarray | None, alignment: Alignment, like_jwst: bool
) -> PositionAnswer:
    """Return how the registration answers to a source in the integrations of an exposure.

    Parameters
    ----------
    targets : (n, ny, nx) floating
        The integrations.
    left : (n, ny, nx) floating
        What PSF subtraction leaves of them; NaN in those that are not done. Sources are in it, and
        they stay where they are: what moves with the references is the star alone.
    offsets : (n, 2) or None
        How far integrations are from where the references are.
    alignment : Alignment
    like_jwst : bool
    """
    targets, left = to_host(targets), to_host(left)
    done = np.isfinite(left).any(axis=(1, 2))
    stars = targets[done] - np.nan_to_num(left[done])
    moves = np.zeros((len(stars), 2)) if offsets is None else offsets[done]
    first, moved = to_references(stars, moves)
    star = (first if offsets is None else moved).mean(axis=0)
    return position_answer(star, to_host(alignment.fit_mask), not like_jwst)


def _missing(missing: Any, offsets: np.ndarray | None) -> np.ndarray | None:
    """Return the pixels that targets lack where the references are."""
    if missing is None:
        return None
    missing = to_host(missing)
    if offsets is None:
        return missing
    return rolled(missing, np.rint(-np.nan_to_num(offsets)).astype(int))


def basis_response(
    vectors: Any,
    weight: np.ndarray | None,
    missing: Any,
    offsets: np.ndarray | None,
    answer: PositionAnswer | None,
) -> SourceResponse:
    """Return the response of whole images whose references are without the source.

    Parameters
    ----------
    vectors : (k, ny, nx)
        KL vectors.
    weight : (ny, nx) or None
    missing : (n, ny, nx) bool or None
    offsets : (n, 2) or None
        How far integrations are from where the references are.
    answer : PositionAnswer or None
        Of the registration; None where nothing is aligned.
    """
    missing = _missing(missing, offsets)
    return SourceResponse(KlipResponse(to_host(vectors), weight, missing, answer))


def gram_response(
    done: Subtracted, references: References, alignment: Alignment, fits: Any
) -> SourceResponse:
    """Return the response with other rolls as references, with zones or chosen references.

    `fits` as for `References.moves`. References that the largest model does not use count as not
    chosen.
    """
    groups, targets = references.groups, None
    rows = np.nan_to_num(done.rows)
    rows = rows if done.zones is not None else rows[None]
    if (groups >= 0).any() and not done.by_rolls:
        offsets = np.zeros((len(done.targets), 2)) if done.offsets is None else done.offsets
        plain, moved = to_references(done.targets, offsets)
        targets = to_host(plain if done.offsets is None else moved)
    klip = GramInjection(
        targets,
        to_host(done.references),
        groups,
        used=rows != 0,
        zones=None if done.zones is None else done.zones.labels,
        optimise=None if done.zones is None else done.zones.optimise,
        weight=done.weight,
        missing=_missing(done.missing, done.offsets),
        fixed=rows[0] if done.by_rolls else None,
        answer=done.answer,
    )
    return SourceResponse(klip, references.moves(alignment, fits))
