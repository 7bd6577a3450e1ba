"""Prepare an association that both pipelines can read."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.errors import InputError

if TYPE_CHECKING:
    from gpucoron.io.association import Member

DO_NOT_USE = np.uint32(1)


@dataclass(frozen=True)
class Staged:
    """The association to run, its psfmask, its science exposures in order, and the changes."""

    asn: Path
    psfmask: Path
    science: tuple[str, ...]  # root names
    notes: tuple[str, ...]


def stage(asn: str | PathLike, folder: Path, psfmask: str | PathLike | None = None) -> Staged:
    """Write an association of links to the exposures, without what jwst cannot process.

    The first product is used. The folder, new or empty, gets links, trimmed copies, the association
    and, without `psfmask`, the mask that gpucoron would use.

    A reference integration without a usable pixel gives jwst's KLIP an eigenvector of rounding
    noise, which is not reproducible. Such integrations are left out of a copy of their exposure,
    and exposures without any other are left out of the association.
    """
    from gpucoron.io.association import read_association
    from gpucoron.io.association_text import parse_association
    from gpucoron.io.exposures import read_exposure, read_meta
    from gpucoron.io.names import exposure_root
    from gpucoron.io.product_naming import product_names

    association = read_association(Path(asn))
    metas = [read_meta(p.science[0].path) for p in association.products]
    name = product_names(association, metas)[0]
    product, notes = association.products[0], []
    if len(association.products) > 1:
        notes.append(
            f"the association has {len(association.products)} products; jwst takes the "
            f"first, {name}, and so does this comparison"
        )
    folder.mkdir(parents=True, exist_ok=True)
    members = []
    for member in product.science:
        _link(member.path, folder)
        members.append({"expname": _plain_name(member.path), "exptype": "science"})
    for member in product.psf:
        if _stage_reference(member, folder, notes):
            members.append({"expname": _plain_name(member.path), "exptype": "psf"})
    if len(members) == len(product.science):
        raise InputError(f"{asn}: no reference integration has a usable pixel")
    table = parse_association(Path(asn).read_bytes(), Path(asn).name)
    table["asn_id"] = association.asn_id
    table["products"] = [{**table["products"][0], "name": name, "members": members}]
    staged = folder / f"{Path(asn).stem}.json"
    staged.write_text(json.dumps(table, indent=1))
    if psfmask is None:
        mask = _found_mask(read_exposure(product.science[0].path, "science"), folder, notes)
    else:
        mask = Path(psfmask).resolve()
    return Staged(staged, mask, tuple(exposure_root(m.path) for m in product.science), tuple(notes))


def _plain_name(path: Path) -> str:
    """Return the file name of an exposure that is not compressed."""
    return path.stem if path.suffix in (".gz", ".fz") else path.name


def _link(path: Path, folder: Path) -> None:
    """Link an exposure into the folder, or copy it: unpacked, or where links are not supported."""
    from gpucoron.io.fits.reading import open_fits

    target, content = folder / _plain_name(path), open_fits(path, InputError).content
    if content is not None:
        target.write_bytes(content)
        return
    try:
        os.symlink(path.resolve(), target)
    except OSError:
        shutil.copy2(path, target)


def _stage_reference(member: Member, folder: Path, notes: list[str]) -> bool:
    """Link or trim one reference exposure; return whether any integration is usable."""
    from gpucoron.io.exposures import read_exposure

    usable = _usable(read_exposure(member.path, "psf").stack)
    if usable.all():
        _link(member.path, folder)
        return True
    which = ", ".join(str(i + 1) for i in np.flatnonzero(~usable))
    notes.append(
        f"{member.path.name}: reference integration {which} of {len(usable)} has no "
        "usable pixel (jwst would make an eigenvector of noise of it); both run without it"
    )
    if usable.any():
        _write_trimmed(member.path, folder / _plain_name(member.path), usable)
    return bool(usable.any())


def _usable(stack: Any) -> np.ndarray:
    """Return which integrations have a pixel that is finite in every array and not DO_NOT_USE."""
    good = (stack.dq & DO_NOT_USE) == 0
    for array in (stack.data, stack.err, stack.var_poisson, stack.var_rnoise, stack.var_flat):
        if array is not None:
            good &= np.isfinite(array)
    return good.any(axis=(1, 2))


def _write_trimmed(path: Path, target: Path, keep: np.ndarray) -> None:
    """Copy an exposure with only the integrations in `keep`."""
    from astropy.io import fits

    with fits.open(path) as hdus:
        out = fits.HDUList()
        for hdu in hdus:
            data = hdu.data
            per_integration = (
                data is not None
                and len(data) == len(keep)
                and (hdu.name == "INT_TIMES" or (hdu.is_image and data.ndim == 3))
            )
            if per_integration:
                hdu = type(hdu)(data=data[keep], header=hdu.header, name=hdu.name)
            out.append(hdu)
        out[0].header["NINTS"] = int(keep.sum())
        out.writeto(target)


def _found_mask(exposure, folder: Path, notes: list[str]) -> Path:
    from astropy.io import fits

    from gpucoron.io.psfmask import find_psfmask

    mask, _, how = find_psfmask(None, exposure)
    target = folder / "psfmask.fits"
    primary = fits.PrimaryHDU()
    primary.header["TELESCOP"], primary.header["REFTYPE"] = "JWST", "PSFMASK"
    primary.header["DATAMODL"] = "ImageModel"
    fits.HDUList([primary, fits.ImageHDU(mask.astype(np.float32), name="SCI")]).writeto(target)
    notes.append(f"psfmask {how}; both use {target.name}")
    return target
