"""Run jwst and gpucoron on one association, and compare their products."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from gpucoron.errors import OutputError
from gpucoron.verify.report import Report, compare_products
from gpucoron.verify.runs import require_jwst, run_module

log = logging.getLogger("gpucoron")

_MARK = "gpucoron-verify.txt"  # marks folders that may be emptied
_EMPTIED = ("gpucoron", "jwst", "input")
_WRITTEN = (_MARK, "report.json", "report.txt", "crds") + tuple(
    f"run_{name}.{kind}"
    for name in ("gpucoron", "jwst")
    for kind in ("job.json", "record.json", "log")
)


def verify(
    asn: str | PathLike,
    output_dir: str | PathLike,
    *,
    psfmask: str | PathLike | None = None,
    sets: Sequence[str] = (),
    align: str | None = None,
    device: str = "cpu",
    double_fft: bool = True,
) -> Report:
    """Run jwst and gpucoron on one association, and compare their products.

    Parameters
    ----------
    asn : path
        Association; its first product is run.
    output_dir : path
        Gets ``jwst/``, ``gpucoron/``, ``input/``, logs, ``report.txt`` and ``report.json``.
    psfmask : path, optional
        For both. Default: the mask that gpucoron uses.
    sets : sequence of str
        ``"klip.truncate=10"``, for both.
    align : {"first", "each", "joint"}, optional
        gpucoron's alignment; default "first", as in jwst.
    device : str
        Device for gpucoron: "auto", "cpu" or a number.
    double_fft : bool
        Run the Fourier transforms of jwst's alignment in double precision.

    Returns
    -------
    Report

    Raises
    ------
    PeerError
        jwst is not installed, or failed.
    GpucoronError
        Input that cannot be used, a parameter that does not exist, a folder that cannot be written.
    """
    from gpucoron.verify.run_jwst import step_parameters
    from gpucoron.verify.staging import stage

    require_jwst()
    changed = _changed_parameters(sets, align)
    folder = Path(output_dir).resolve()
    _check_inputs_outside(folder, asn, psfmask)
    places = {name: folder / name for name in _EMPTIED}
    _make(folder, places.values())
    staged = stage(asn, places["input"], psfmask)
    for note in staged.notes:
        log.warning("%s", note)
    common = {"asn": str(staged.asn), "psfmask": str(staged.psfmask)}
    runs = {}
    log.info("running gpucoron")
    runs["gpucoron"] = run_module(
        "run_gpucoron",
        {
            **common,
            "output_dir": str(places["gpucoron"]),
            "set": list(sets),
            "align": align,
            "device": device,
        },
        folder,
    )
    log.info("running jwst")
    runs["jwst"] = run_module(
        "run_jwst",
        {
            **common,
            "output_dir": str(places["jwst"]),
            "steps": step_parameters(changed),
            "science": list(staged.science),
            "double_fft": double_fft,
            "crds_dir": str(folder / "crds"),
        },
        folder,
    )
    log.info("comparing")
    report = compare_products(places["gpucoron"], places["jwst"])
    report.runs, report.notes, report.parameters = runs, list(staged.notes), changed
    _save(folder, report)
    return report


def _changed_parameters(sets: Sequence[str], align: str | None) -> dict[str, Any]:
    """Return the parameters that are not the preset's defaults, by full name."""
    from gpucoron.core.parameters import Parameters

    chosen = Parameters.from_sources(sets=sets, preset="jwst", keywords={"align": align}).flat()
    usual = Parameters.from_sources(preset="jwst").flat()
    return {name: value for name, value in chosen.items() if value != usual[name]}


def _check_inputs_outside(
    folder: Path, asn: str | PathLike, psfmask: str | PathLike | None
) -> None:
    """Raise OutputError if an input is in the folder and would be removed with what is there."""
    from gpucoron.io.association import read_association

    if not (folder / _MARK).is_file():
        return
    members = (m.path for product in read_association(Path(asn)).products for m in product.used)
    for path in (asn, *([psfmask] if psfmask else []), *members):
        for place in (folder / name for name in _EMPTIED):
            if place in Path(path).resolve().parents:
                raise OutputError(f"{path} is in the output folder {place}, which is emptied")


def _make(folder: Path, places) -> None:
    """Create the folders, or empty those of an earlier comparison."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / _MARK
        ours = mark.is_file() and not mark.is_symlink()
        written = [*places, *(folder / name for name in _WRITTEN)]
        for path in written:
            if path.is_symlink():
                path.unlink()  # what it leads to is not ours
            elif path.exists() and not ours:
                raise OutputError(
                    f"output folder {folder} holds {path.name}, which no earlier comparison has "
                    "written; expected a folder without it, or another folder"
                )
        mark.write_text("gpucoron verify writes this folder, and empties it when it runs again.\n")
        for place in places:
            if place.is_dir():
                shutil.rmtree(place)
            place.mkdir()
    except OutputError:
        raise
    except OSError as problem:
        raise OutputError(f"cannot make output folder {folder}: {problem.strerror}") from problem


def _save(folder: Path, report: Report) -> None:
    try:
        (folder / "report.json").write_text(report.to_json())
        (folder / "report.txt").write_text("\n".join(report.lines()) + "\n")
    except OSError as problem:
        raise OutputError(f"cannot write the report to {folder}: {problem.strerror}") from problem
