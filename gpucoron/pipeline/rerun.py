"""Run an association in memory, or again what a folder of products comes from, to measure on it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.backend.device import choose_device
from gpucoron.errors import InputError
from gpucoron.pipeline import resume
from gpucoron.pipeline.run_options import RunOptions

if TYPE_CHECKING:
    from gpucoron.pipeline.result import Result

__all__ = ["find_record", "is_run", "run_again"]


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
    source: str | os.PathLike,
    *,
    device: Any = "auto",
    parameters: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
    psfmask: Any = None,
    threads: int | None = None,
    progress: Any = None,
) -> Result:
    """Run an association, or an earlier run's with its parameters again; nothing is written.

    Parameters
    ----------
    source : path
        Of an association; or for an earlier run as for `find_record`.
    device, psfmask, threads : see `gpucoron.run`
        `psfmask` is by default that of the earlier run.
    parameters, sets : mapping, sequence of text
        In place of those that it was run with: ``{"klip.truncate": 5}``, ``["klip.truncate=5"]``.
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

    again = is_run(source)
    asn, known, own = _settings(source) if again else (Path(source), {}, None)
    options = RunOptions(
        asn,
        Parameters.from_sources(sets=list(sets), keywords=[known, parameters or {}]),
        choose_device(device),
        None,
        save=frozenset(),
        keep=frozenset({"i2d"}),
        psfmask=psfmask or own,
        skip_bad=again,
        threads=threads,
        forward_model=True,
    )
    return run_association(options, progress)


def is_run(source: str | os.PathLike) -> bool:
    """Return whether a path is that of an earlier run, and not of an association."""
    return os.path.isdir(source) or str(source).endswith("_run.json")


def _settings(source: str | os.PathLike) -> tuple[Path, dict[str, Any], str | None]:
    """Return association, parameters and psfmask of an earlier run."""
    record = find_record(source)
    asn = Path(record["inputs"][0]["path"])
    if not asn.is_file():
        raise InputError(f"{asn}: no such file, expected the association of the run in {source}")
    masks = {os.path.basename(mask["name"]) for mask in record["psfmasks"].values()}
    files = [entry["path"] for entry in record["inputs"][1:]]  # not masks from CRDS, or of ones
    own = [path for path in files if os.path.basename(path) in masks]
    flat = {name: value for name, value in record["parameters"].items() if value is not None}
    return asn, flat, own[0] if own else None
