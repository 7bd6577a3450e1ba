"""stack_refs: concatenate the integrations of all reference exposures."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.backend.parallel import map_items
from gpucoron.core.stack import IntegrationStack, PlaneSource
from gpucoron.errors import InputError

__all__ = ["stack_refs"]

log = logging.getLogger("gpucoron")


def stack_refs(
    stacks: Sequence[IntegrationStack], *, keep_unusable: bool = False
) -> IntegrationStack:
    """Concatenate reference exposures in one stack.

    Parameters
    ----------
    stacks : sequence of IntegrationStack
        The reference exposures, in the order of the association.
    keep_unusable : bool
        Keep integrations without a single finite, usable pixel, as jwst does. By default they are
        left out and named in a warning: they would become noise in the KLIP basis.

    Returns
    -------
    IntegrationStack
        data, err and dq, without variances; `sources` tells the exposure and integration of each
        plane.

    Raises
    ------
    InputError
        No reference exposure, differing image shapes, or no usable integration at all.
    """
    if not stacks:
        raise InputError("stack_refs: no reference exposures given")
    shapes = {s.shape[1:] for s in stacks}
    if len(shapes) > 1:
        raise InputError(f"stack_refs: reference images differ in shape: {sorted(shapes)}")
    sources: tuple[PlaneSource, ...] = ()
    if all(s.sources for s in stacks):
        sources = tuple(source for s in stacks for source in s.sources)
    xp = cuda.array_namespace(*(s.data for s in stacks))
    parts = [s.data for s in stacks], [s.err for s in stacks], [s.dq for s in stacks]
    data, err, dq = map_items(xp.concatenate, parts, xp)
    stack = IntegrationStack(data, err, dq, sources=sources)
    if keep_unusable:
        return stack
    usable = to_host((xp.isfinite(stack.data) & ((stack.dq & np.uint32(1)) == 0)).any(axis=(1, 2)))
    if not usable.any():
        raise InputError("stack_refs: no reference integration has a usable pixel")
    for plane in np.flatnonzero(~usable):
        where = f"plane {plane + 1}"
        if sources:
            where = f"{sources[plane].exposure}, integration {sources[plane].integration}"
        log.warning("reference without a usable pixel left out: %s", where)
    return stack if usable.all() else stack.planes(usable)
