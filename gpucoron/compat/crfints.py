"""Copies of crfints that say where the star is, for pyKLIP's and spaceKLIP's readers."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.core.star import StarPositions
from gpucoron.errors import UsageError
from gpucoron.io.star import copy_with_star

if TYPE_CHECKING:
    from gpucoron.pipeline.result import ProductResult, Result

__all__ = ["copy_crfints"]

#: By how much the shifts between images of two stars differ from the motion of the star, pixels:
#: speckles depend on where the star is behind the mask (docs/star.md).
_UNLIKE_PX = 0.1


def copy_crfints(
    result: Result, folder: str | PathLike, overwrite: bool = True
) -> tuple[list[str], list[str]]:
    """Copy the crfints of a run, with the measured star's position in their headers.

    A run writes crfints before the star is measured. pyKLIP's reader of JWST data, and spaceKLIP,
    take the star's position from STARCENX and STARCENY of SCI, which the copies have:
    ``science, references = copy_crfints(result, "centred")`` and
    ``JWSTData(science, psflib_filepaths=references)``.

    Parameters
    ----------
    result : Result
        Of `gpucoron.run` with an `output_dir`, to which crfints were written. Its first product is
        used.
    folder : path
        Where the copies go, under the same names. Made where it does not exist.
    overwrite : bool
        Whether files there may be replaced.

    Returns
    -------
    science, references : list of str
        The copies.

    Raises
    ------
    UsageError
        The result has no crfints on disk, or no positions of its images.
    OutputError
        A copy cannot be written, or would replace a file that must stay.

    Notes
    -----
    The keywords are those of psfsub, as means of the integrations. Where the star is in a reference
    is where it is in the science exposures, and how far the images of both are apart
    (`ProductResult.positions`); its error has 0.1 px for what this does not tell of another star.
    """
    product = result.product
    tables = [product.positions[root] for root in product.stars if root in product.positions]
    if not tables or len(tables) < len(product.stars):
        raise UsageError(
            f"{product.name}: no positions of images; expected a run with klip and align='joint'"
        )
    others = {
        str(name) for table in tables for name in table["exposure"][table["exptype"] == "psf"]
    }
    stars = product.stars | {root: _of_reference(product, root) for root in sorted(others)}
    written = {root: _file_of(result, root) for root in stars}
    copied = {
        root: str(copy_with_star(path, Path(folder), stars[root], overwrite))
        for root, path in written.items()
    }
    science = [copied[root] for root in product.stars]
    return science, [copied[root] for root in stars if root not in product.stars]


def _of_reference(product: ProductResult, root: str) -> StarPositions:
    """Return where the star is in a reference exposure: the mean by all science exposures."""
    found = []
    for science, star in product.stars.items():
        table = product.positions[science]
        rows = table[table["exposure"] == root]
        (x, y), (x_err, y_err) = star.mean, np.nan_to_num(star.mean_error)
        errors = [
            np.sqrt(rows[name] ** 2 + error**2 + _UNLIKE_PX**2)
            for name, error in (("x_err", x_err), ("y_err", y_err))
        ]
        found.append([rows["x"] + x, rows["y"] + y, *errors])
    x, y, x_err, y_err = np.mean(found, axis=0)
    return StarPositions(x, y, x_err, y_err, next(iter(product.stars.values())).source)


def _file_of(result: Result, root: str) -> Path:
    for path in result.files:
        if path.name.startswith(f"{root}_") and path.name.endswith("_crfints.fits"):
            return path
    raise UsageError(
        f"no crfints of {root} among the files of the run; expected an output_dir, and 'crfints' "
        "in save"
    )
