"""Run an association, or estimate what a run takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from gpucoron.backend.device import Device, choose_device, is_open
from gpucoron.backend.logs import Progress
from gpucoron.backend.progress import show_run
from gpucoron.core.parameters import Parameters
from gpucoron.core.products import PRODUCTS
from gpucoron.core.step_keywords import StepKeywords
from gpucoron.errors import UsageError
from gpucoron.pipeline.association import plan_association, run_association
from gpucoron.pipeline.planning import Plan
from gpucoron.pipeline.result import Result
from gpucoron.pipeline.run_options import DEFAULT_SAVE, RunOptions

if TYPE_CHECKING:
    from gpucoron.io.exposures import Exposure

__all__ = ["PRODUCTS", "plan", "run"]

#: One exposure of an association that is given as a list.
AnyExposure: TypeAlias = "str | PathLike[str] | tuple[str | PathLike[str], str] | Exposure"
#: What `run` and `plan` take as an association.
AnyAssociation: TypeAlias = "str | PathLike[str] | Mapping[str, Any] | Iterable[AnyExposure]"
Steps: TypeAlias = Mapping[str, Mapping[str, Any]]
Star: TypeAlias = "tuple[float, ...] | list[float] | str"


def run(
    asn: AnyAssociation,
    device: str | int | Device = "auto",
    output_dir: str | PathLike | None = None,
    align: str | None = None,
    *,
    psfmask: str | PathLike | None = None,
    preset: str | None = None,
    parameters: Parameters | Mapping[str, Any] | None = None,
    save: Collection[str] | None = None,
    keep: Collection[str] | None = None,
    overwrite: bool = True,
    skip_bad: bool = False,
    checksums: bool = True,
    steps: Steps | None = None,
    star: Star | None = None,
    star_model: str | PathLike[str] | None = None,
    star_flux: float | str | None = None,
    psf: Any = None,
    psfmask_center: str | None = None,
    exclude: Iterable[tuple[float, float, float]] | str | None = None,
    mode: str | None = None,
    exclude_reference: Iterable[str] | str | None = None,
    progress: Progress | bool | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    client: Any = None,
    resume: bool = False,
    forward_model: bool | None = None,
    contrast: bool = False,
    **keywords: Unpack[StepKeywords],
) -> Result:
    """Run PSF subtraction and resampling on an association (calwebb_coron3).

    Parameters
    ----------
    asn : path, dict, or list of exposures
        A level-3 association of ``_calints`` exposures: a file (JSON or YAML), its contents, or a
        list of exposures, each a path, a pair of path and "science" or "psf", or what
        `gpucoron.io.read_exposure` returns, whose images may have been changed. A path alone is a
        reference where its header has IS_PSF = T. Names are relative to the file, or to the current
        folder.
    device : str, int or Device
        "auto", "cpu", or the number of a CUDA device; "0,1" shares the work between two. "auto"
        is decided when the association is known.
    output_dir : path, optional
        Where products are written; nothing is written without it.
    align : {"joint", "each", "first"}, optional
        Short for ``align_refs_align``: one position for every image from fits of some pairs (the
        default), a fit of every pair, or of the first integration of an exposure only.
    psfmask : path, optional
        The psfmask. Default: CRDS where it is set up, else ones everywhere.
    preset : {"jwst"}, optional
        Reproduce the jwst package, oddities included.
    parameters : Parameters or mapping, optional
        Step parameters; ``{"klip.truncate": 10}`` or a `gpucoron.core.parameters.Parameters`.
    save : collection of str, optional
        What to write (`PRODUCTS`); default all but "median".
    keep : collection of str, optional
        What the result holds in memory. Default: everything; with an `output_dir`, all but
        "psfalign", which can be larger than memory.
    overwrite : bool
        Replace files that exist.
    skip_bad : bool
        Leave out members that cannot be used or do not go with the others, each with a warning
        and in `ProductResult.left_out`, instead of stopping.
    checksums : bool
        Compare inputs with the checksums in their headers, where there are any.
    steps : mapping, optional
        Step parameters in jwst's spelling, ``{"klip": {"truncate": 10}}``.
    star : (x, y), optional
        The star's pixel in the first science exposure, counted from 1, or x, y of each exposure
        one after another. Default: measured.
    star_model : path, optional
        FITS file with images of a star, by which it is measured.
    star_flux : float or str, optional
        The star's flux density without the mask, Jy, or with a unit, as "350mJy". Default: that of
        the fitted model of the coronagraph. A spectrum or magnitude: see
        `gpucoron.core.parameters.Analysis`.
    psf : path, array or object, optional
        PSF of an off-axis source, by which companions and limits are measured: a file
        (`gpucoron.io.psf_file.read_psf`), the image (ny, nx) of a source without the mask in pixels
        of the detector, or a `gpucoron.optics.given_psf.GivenPSF`. Default: the optics.
    psfmask_center : {"file", "star"}, optional
        Leave the hole of the psfmask where its file has it (default), or move it onto the star.
    exclude : list of (east, north, radius), optional
        Known sources to mask, arcsec from the star.
    mode : {"auto", "rdi", "adi", "adi+rdi", "roll"}, optional
        References: psf members, the other rolls, both, or the mean of the other rolls. Default:
        psf members, or the other rolls where there are none.
    exclude_reference : str or list of str, optional
        File or root names of exposures, or jw and the numbers of visits, that are not used as
        references.
    progress : callable or bool, optional
        Called as ``progress(step, done, total, text)``. Default: bars if standard error is a
        terminal, one line in a notebook, nothing elsewhere; False shows nothing.
    threads : int, optional
        Of every thread pool. Default: the processors that this process may use.
    memory : int or str, optional
        What the run may use, bytes or ``"4GiB"``. Default: half of what is free.
    client : distributed.Client, optional
        Run on the workers of this Dask cluster; needs an `output_dir` that all of them see, and
        keeps only fits in memory. `device`, `threads` and `memory` are then those of a worker.
    resume : bool
        Go on from what an earlier run with the same inputs and parameters has completed in
        `output_dir`, by its ``*_run.json``; from the beginning where there is none.
    forward_model : bool, optional
        Keep what predicts how a source looks in the products (`ProductResult.forward_model`), which
        contrast curves and the fluxes of candidates need: nref x ny x nx float64 per exposure.
        Default: unless `resume`, for it is not in the products.
    contrast : bool
        Measure the contrast curve and map (`Result.contrast`), and write ``_contrast.ecsv`` and
        ``_contrast.fits`` with the products.
    **keywords
        More step parameters, ``klip_truncate=10`` or ``klip={"truncate": 10}``: see
        `gpucoron.core.step_keywords.StepKeywords`.

    Returns
    -------
    Result

    Raises
    ------
    GpucoronError
        One of its kinds, with one line that says what was found and what was expected.

    Notes
    -----
    Warnings are log records of the logger "gpucoron", and in `Result.warnings`. Where neither that
    logger nor the root logger has a handler, as in a notebook, they are written to standard error,
    each once.
    """
    if client is None and not is_open(device):
        device = choose_device(device)
    if client is not None and (output_dir is None or keep):
        raise UsageError("with client= products are files: expected an output_dir, and no keep")
    if client is not None:
        keep = ()
    elif keep is None:
        keep = set(PRODUCTS) - ({"psfalign"} if output_dir else set())
    own: dict[str, Any] = {"align": align, "star": star, "star_model": star_model}
    own |= {"star_flux": star_flux, "psf": psf if _is_path(psf) else None}
    own |= {"psfmask_center": psfmask_center, "exclude": exclude}
    own |= {"mode": mode, "exclude_reference": exclude_reference}
    options = RunOptions(
        _path(asn),
        _parameters(parameters, preset, own, steps, keywords),
        device,
        None if output_dir is None else Path(output_dir),
        save=DEFAULT_SAVE if save is None else frozenset(save),
        keep=frozenset(keep),
        psfmask=psfmask,
        overwrite=overwrite,
        skip_bad=skip_bad,
        checksums=checksums,
        resume=resume,
        threads=threads,
        memory=memory,
        forward_model=not resume if forward_model is None else forward_model,
        psf=None if _is_path(psf) else psf,
        contrast=contrast,
    )
    if output_dir is None:
        options = replace(options, save=frozenset())
    if client is not None and not _is_path(asn):
        raise UsageError("with client= the association is a file: expected its path")
    if client is not None and options.psf is not None:
        raise UsageError("with client= psf is a file: expected its path")
    with show_run(progress) as shown:
        options = _with_given(options, asn)
        if client is None:
            return run_association(options, shown)
        from gpucoron.cluster.client import run_on

        return run_on(client, options, shown)


def plan(
    asn: AnyAssociation,
    align: str | None = None,
    *,
    preset: str | None = None,
    parameters: Parameters | Mapping[str, Any] | None = None,
    save: Collection[str] | None = None,
    steps: Steps | None = None,
    star: Star | None = None,
    star_model: str | PathLike[str] | None = None,
    star_flux: float | str | None = None,
    psf: Any = None,
    psfmask_center: str | None = None,
    exclude: Iterable[tuple[float, float, float]] | str | None = None,
    mode: str | None = None,
    exclude_reference: Iterable[str] | str | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    **keywords: Unpack[StepKeywords],
) -> tuple[Plan, ...]:
    """Estimate time, memory and disk of a run, for each product, from headers alone.

    Parameters
    ----------
    asn, align, preset, parameters, save, steps, star, star_model, star_flux, psf,
    psfmask_center,
    exclude, mode, exclude_reference, threads, memory, **keywords
        As for `run`.

    Returns
    -------
    tuple of Plan

    Raises
    ------
    GpucoronError
        As `run`, as far as headers tell.
    """
    own: dict[str, Any] = {"align": align, "star": star, "star_model": star_model}
    own |= {"star_flux": star_flux, "psf": psf if _is_path(psf) else None}
    own |= {"psfmask_center": psfmask_center, "exclude": exclude}
    own |= {"mode": mode, "exclude_reference": exclude_reference}
    options = RunOptions(
        _path(asn),
        _parameters(parameters, preset, own, steps, keywords),
        save=DEFAULT_SAVE if save is None else frozenset(save),
        threads=threads,
        memory=memory,
        psf=None if _is_path(psf) else psf,
        forward_model=True,
    )
    return plan_association(_with_given(options, asn))


def _is_path(asn: object) -> bool:
    return isinstance(asn, str | PathLike)


def _path(asn: Any) -> Path:
    return Path(asn) if _is_path(asn) else Path()


def _with_given(options: RunOptions, asn: Any) -> RunOptions:
    """Return the options with an association that is not a file."""
    if _is_path(asn):
        return options
    from gpucoron.io.given_association import given_association

    given = given_association(
        asn,
        check_files=not options.skip_bad,
        need_references=options.parameters.klip.mode == "rdi",
    )
    return replace(options, given=given)


def _parameters(
    parameters: Parameters | Mapping[str, Any] | None,
    preset: str | None,
    own: Mapping[str, Any],
    steps: Steps | None,
    keywords: Mapping[str, Any],
) -> Parameters:
    """Return the step parameters that were given in one way or another."""
    if not isinstance(parameters, Parameters):
        return Parameters.from_sources(
            preset=preset, keywords=[parameters or {}, steps or {}, own, keywords]
        )
    if keywords or steps or preset not in (None, parameters.preset):
        raise UsageError("give either a Parameters object or single parameters, not both")
    for name, value in own.items():
        parameters = parameters if value is None else parameters.with_value(name, value)
    return parameters
