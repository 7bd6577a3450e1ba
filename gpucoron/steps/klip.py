"""klip: model each science integration by the references, and subtract."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpucoron.errors import InputError
from gpucoron.ops.eigen import KLBasis
from gpucoron.stack import IntegrationStack

__all__ = ["basis", "klip"]


def klip(
    stack: IntegrationStack, references, truncate: int | Sequence[int] = 50, *,
    overwrite_references: bool = False,
) -> IntegrationStack | list[IntegrationStack]:
    """Subtract from every integration its projection on the references' first KL vectors.

    Parameters
    ----------
    stack : IntegrationStack
        The science integrations; pixels that are not finite take no part and stay NaN.
    references : (nref, ny, nx) or (n, nref, ny, nx) floating
        Aligned references, for all integrations or for each its own. An image that is not finite
        throughout is left out.
    truncate : int or sequence of int
        Number of KL vectors kept. Several are served from one decomposition. With as many as there
        are references, all of each reference is modelled, and err is 0.
    overwrite_references : bool
        The references may be changed (float64 ones lose their means): saves a copy.

    Returns
    -------
    IntegrationStack, or a list of them where several truncations are asked for
        float32: `data` without mean and PSF, `err` the scatter of the references about their own
        models; dq and variances as they were.

    Raises
    ------
    InputError
        No usable reference, or shapes that do not fit.
    ParameterError
        A negative truncation.

    Notes
    -----
    out = t - mean(t) - sum_k <t, z_k> z_k with the KL vectors z_k of Soummer, Pueyo & Larkin
    (2012); err is the same plane for every integration that shares its references. The basis is
    computed once where the references are shared.
    """
    if references.shape[-2:] != stack.shape[1:] or references.ndim not in (3, 4):
        raise InputError(
            f"klip: references have shape {references.shape}, expected "
            f"(nref, {stack.shape[1]}, {stack.shape[2]}) or with {len(stack)} in front")
    wanted = [int(k) for k in np.atleast_1d(truncate)]
    if references.ndim == 3:
        shared = basis(references, overwrite_references)
        pairs = zip(shared.subtract(stack.data, wanted), shared.scatter(wanted), strict=True)
        empty = ~np.isfinite(stack.data).any(axis=(1, 2))
        out = [(d.astype(np.float32), np.broadcast_to(e.astype(np.float32), d.shape).copy())
               for d, e in pairs]
        for _, err in out:
            err[empty] = np.nan
    elif len(references) != len(stack):
        raise InputError(
            f"klip: references for {len(references)} integrations, but there are {len(stack)}")
    else:
        out = [(np.full(stack.shape, np.nan, np.float32), np.full(stack.shape, np.nan, np.float32))
               for _ in wanted]
        for i, own in enumerate(references):
            if np.isfinite(stack.data[i]).any():
                one = basis(own, overwrite_references)
                pairs = zip(one.subtract(stack.data[i : i + 1], wanted), one.scatter(wanted),
                            strict=True)
                for (data, err), (d, e) in zip(out, pairs, strict=True):
                    data[i], err[i] = d[0], e
    stacks = [stack.replace(data=data, err=err) for data, err in out]
    return stacks if np.ndim(truncate) else stacks[0]


def basis(references, overwrite: bool = False) -> KLBasis:
    """Build the KL basis of the references that are finite.

    Parameters
    ----------
    references : (nref, ny, nx) floating
        Aligned references.
    overwrite : bool
        They may be changed.

    Returns
    -------
    KLBasis

    Raises
    ------
    InputError
        None of them is usable.
    """
    usable = np.isfinite(references).all(axis=(1, 2))
    if not usable.any():
        raise InputError(f"klip: none of {len(usable)} reference images is usable")
    if usable.all():
        return KLBasis(references, overwrite)
    return KLBasis(references[usable], overwrite=True)
