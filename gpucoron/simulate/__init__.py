"""Simulate a JWST coronagraphic association with known ground truth.

``simulate(directory)`` writes ``_calints`` exposures, their association, a psfmask and the ground
truth. numpy, astropy, gwcs and stdatamodels are imported when it is called.
"""

from __future__ import annotations

from os import PathLike

from gpucoron.simulate.options import (
    DEMO,
    LARGE,
    Options,
    Planet,
    PlanetTruth,
    Simulation,
)

__all__ = ["DEMO", "LARGE", "Options", "Planet", "PlanetTruth", "Simulation", "simulate"]


def __dir__() -> list[str]:
    return __all__


def simulate(
    output_dir: str | PathLike,
    instrument: str = "nircam",
    seed: int = 0,
    shape: tuple[int, int] | None = None,
    **options,
) -> Simulation:
    """Simulate an association with known ground truth and write it.

    Parameters
    ----------
    output_dir : path
        Created if absent.
    instrument : str
        ``nircam`` (round mask), ``miri-4qpm`` or ``miri-lyot``.
    seed : int
        The same seed and options give the same files.
    shape : (int, int) or None
        Rows and columns of a cut-out around the mask; None is the whole subarray.
    **options
        Any other field of `Options`: ``n_science``, ``n_integrations``, ``n_references``,
        ``n_reference_integrations``, ``planets``, ``disk``, ``noise``, ``cosmic_rays``, ...

    Returns
    -------
    Simulation
        Paths of the files, and the injected planets.

    Raises
    ------
    ParameterError
        An option that does not exist, or an invalid value.
    OutputError
        The folder cannot be written, or contains this association and `overwrite` is false.
    """
    chosen = Options.from_keywords(instrument=instrument, seed=seed, shape=shape, **options)
    from gpucoron.simulate.run import run

    return run(output_dir, chosen)
