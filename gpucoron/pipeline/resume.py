"""Resume an interrupted run: verify and read back its products."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.errors import InputError
from gpucoron.io.files import read_input

if TYPE_CHECKING:
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.io.exposures import Exposure
    from gpucoron.pipeline.product_context import ProductContext

log = logging.getLogger("gpucoron")

_LARGEST = 64 << 20  # bytes
_KEYS = {
    "format": int,
    "gpucoron": str,
    "start": str,
    "status": str,
    "versions": dict,
    "device": dict,
    "parameters": dict,
    "psfmasks": dict,
    "inputs": list,
    "files": list,
    "warnings": list,
}


def read(path: Path) -> dict[str, Any] | None:
    """Return the record of an earlier run, or None."""
    if not path.exists():
        return None
    try:
        content = json.loads(read_input(path, InputError, "a run record", _LARGEST))
    except (InputError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not _is_record(content):
        log.warning("%s: not a valid run record, ignored", path.name)
        return None
    return content


def _is_record(content: Mapping[str, Any]) -> bool:
    return (
        all(isinstance(content.get(key), kind) for key, kind in _KEYS.items())
        and all(isinstance(m, dict) and "name" in m for m in content["psfmasks"].values())
        and all(isinstance(text, str) for text in content["warnings"])
    )


def difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the first difference between the records of two runs; empty if none matters.

    What decides about bits: format and version, libraries, device, parameters, input files (by
    name, size and CRC). Threads, memory, folders, host and the products to write do not.
    """
    for key in ("format", "gpucoron"):
        if earlier[key] != now[key]:
            return f"{key} was {earlier[key]} and is {now[key]}"
    before_after = [_what_counts(record) for record in (earlier, now)]
    for before, after in zip(*before_after, strict=True):
        for key in dict.fromkeys([*before, *after]):
            if before.get(key) != after.get(key):
                return f"{key} was {before.get(key)} and is {after.get(key)}"
    before, after = (_inputs(record["inputs"]) for record in (earlier, now))
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            return f"{name} is {'no longer' if name in before else 'now'} an input"
        if None in before[name] or before[name] != after[name]:
            return f"{name} is not as it was"
    return ""


def _what_counts(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    device = record["device"]
    shown = {"device": device.get("label"), "its name": device.get("name")}
    return record["versions"], shown, record["parameters"]


def _inputs(entries: list) -> dict[str, Any]:
    """Return size and CRC of the input files by name; none where the record is malformed."""
    try:
        return {Path(str(e["path"])).name: (e["size"], e["crc32"]) for e in entries}
    except (TypeError, KeyError):
        return {}


def verified(
    folder: Path, entries: Iterable[Mapping[str, Any]], wanted: Iterable[str], threads: int
) -> dict[str, dict[str, Any]]:
    """Return, by name, the entries of files that are wanted, complete and unmodified."""
    from gpucoron.io.fits.checksums import is_whole

    wanted = set(wanted)
    claimed = [
        dict(e)
        for e in entries
        if isinstance(e, dict)
        and e.get("name") in wanted
        and e.get("state") == "complete"
        and isinstance(e.get("checksums"), dict)
    ]
    with ThreadPoolExecutor(max(1, threads), "gpucoron-verify") as pool:
        whole = list(pool.map(lambda e: is_whole(folder / e["name"], e["checksums"]), claimed))
    for entry, good in zip(claimed, whole, strict=True):
        if not good:
            log.warning("--resume: %s is missing or modified; will be recomputed", entry["name"])
    return {e["name"]: e for e, good in zip(claimed, whole, strict=True) if good}


# ---- reading back what a science exposure came to


def can_read_back(product: ProductContext, exposure: Exposure) -> bool:
    """Return whether a science exposure can be read back instead of subtracted.

    Its psfsub of every truncation must be complete, so must its psfalign if it is to be written,
    and aligned references must not be wanted in memory (files have them in single precision).
    """
    options, aligned = product.run.options, not product.parameters.align_refs.skip
    if "psfsub" not in options.save or (aligned and "psfalign" in options.keep):
        return False
    if options.keeps_forward_model:  # which needs the KL basis
        return False
    paths = product.names.paths(exposure.root, "psfsub")
    if aligned and "psfalign" in options.save:
        paths += product.names.paths(exposure.root, "psfalign")
    return all(map(product.run.record.has, paths))


def read_back(
    product: ProductContext, exposure: Exposure, flagged: IntegrationStack
) -> dict[int, IntegrationStack]:
    """Return a science exposure's subtracted images for each truncation, from its products.

    SCI, ERR and DQ of `flagged` are replaced; klip leaves variances alone. The product's result
    gets the fits, where psfalign has them.
    """
    from gpucoron.io.exposures import read_exposure
    from gpucoron.io.fits.reading import open_fits
    from gpucoron.io.klip_noise import read_klip_noise

    stacks = {}
    with product.run.timed("read"):
        paths = product.names.paths(exposure.root, "psfsub")
        for truncate, path in zip(product.inputs.truncations, paths, strict=True):
            found = read_exposure(path, "science")
            noise = read_klip_noise(open_fits(path, InputError))
            stacks[truncate] = product.backends[0].upload(replace(found.load(), **noise))
        _read_fits(product, exposure)
        read_star_back(product, exposure, paths[0])
    log.info("%s: read back, complete already", exposure.root)
    return {
        k: flagged.replace(
            data=s.data,
            err=s.err,
            dq=s.dq,
            var_ref=s.var_ref,
            var_speckle=s.var_speckle,
            reference_noise=s.reference_noise,
        )
        for k, s in stacks.items()
    }


def read_star_back(product: ProductContext, exposure: Exposure, path: Path) -> None:
    """Note the positions, and where the star is, as an exposure's psfsub or psfalign has them."""
    from gpucoron.io.step_products import read_star_of

    star, table = read_star_of(path, exposure.shape[0])
    if table is not None:
        product.result.positions[exposure.root] = table
    if star is not None and not product.parameters.like_jwst:
        product.stars.note(exposure, star)


def _read_fits(product: ProductContext, exposure: Exposure) -> None:
    from gpucoron.io.fits.reading import open_fits

    if "psfalign" not in product.run.options.save or product.parameters.align_refs.skip:
        return
    path = product.names.path(exposure.root, "psfalign")
    product.run.writer.files.append(path)
    file = open_fits(path, InputError)
    hdu = file.find("ALIGN")
    table = None if hdu is None else file.table(hdu)
    if table is not None:
        product.result.fits[exposure.root] = table
