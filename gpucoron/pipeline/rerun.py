"""Run again what a folder of products comes from, in memory, to measure more on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.backend.device import choose_device
from gpucoron.errors import InputError
from gpucoron.pipeline import resume
from gpucoron.pipeline.run_options import RunOptions

if TYPE_CHECKING:
    from gpucoron.pipeline.result import Result

__all__ = ["find_record", "run_again"]


def find_record(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the record of the complete run whose products are in a folder.

    Parameters
    ----------
    folder : path
        A folder with one ``*_run.json``, or such a file.

    Raises
    ------
    InputError
        There is none, or several, or it is not that of a complete run.
    """
    folder = Path(folder)
    found = [folder] if folder.is_file() else sorted(folder.glob("*_run.json"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found[:4]) or "no such file"
        raise InputError(
            f"{folder}: {names}; expected the folder of a run, with one *_run.json, or that file"
        )
    content = resume.read(found[0])
    if content is None or content.get("status") != "complete":
        status = "no valid record" if content is None else f"a run that is {content['status']}"
        raise InputError(f"{found[0]}: {status}, expected the record of a complete run")
    return content


def run_again(
    folder: str | os.PathLike,
    *,
    device: Any = "auto",
    parameters: Mapping[str, Any] | None = None,
    threads: int | None = None,
    progress: Any = None,
) -> Result:
    """Run an earlier run's association with its parameters again; nothing is written.

    Parameters
    ----------
    folder : path
        As for `find_record`.
    device, threads : see `gpucoron.run`
    parameters : mapping, optional
        In place of those that it was run with, as ``{"klip.truncate": 5}``.
    progress : callable, optional

    Raises
    ------
    InputError
        As `find_record`, or an input that is not there any more.

    Notes
    -----
    The result has the forward model of a source, and the combined images.
    """
    from gpucoron.core.parameters import Parameters
    from gpucoron.pipeline.association import run_association

    record = find_record(folder)
    asn = Path(record["inputs"][0]["path"])
    if not asn.is_file():
        raise InputError(f"{asn}: no such file, expected the association of the run in {folder}")
    masks = {mask["name"] for mask in record["psfmasks"].values()}
    own = [name for name in masks if os.path.dirname(name)]  # the others come from CRDS, or are 1
    flat = {name: value for name, value in record["parameters"].items() if value is not None}
    options = RunOptions(
        asn,
        Parameters.from_sources(keywords=[flat, parameters or {}]),
        choose_device(device),
        None,
        save=frozenset(),
        keep=frozenset({"i2d"}),
        psfmask=own[0] if own else None,
        skip_bad=True,
        threads=threads,
        forward_model=True,
    )
    return run_association(options, progress)
