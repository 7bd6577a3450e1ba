"""Make a JWST coronagraphic association that never was, with its truth.

``simulate(directory)`` writes ``_calints`` exposures, their association, a psfmask and the truth.
Importing this package costs next to nothing: numpy, astropy, asdf and gwcs load when it runs.
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


def simulate(
    output_dir: str | PathLike,
    instrument: str = "nircam",
    seed: int = 0,
    shape: tuple[int, int] | None = None,
    **options,
) -> Simulation:
    """Simulate an association and write it.

    Parameters
    ----------
    output_dir : path
        Made if absent.
    instrument : str
        ``nircam`` (round mask), ``miri-4qpm`` or ``miri-lyot``.
    seed : int
        The same seed and options give the same pixels.
    shape : (int, int) or None
        Rows and columns cut out round the mask; None is the whole subarray.
    **options
        Any other field of `Options`: ``n_science``, ``n_integrations``, ``n_references``,
        ``n_reference_integrations``, ``planets``, ``disk``, ``noise``, ``cosmic_rays``, ...

    Returns
    -------
    Simulation
        The files written and what is in them.

    Raises
    ------
    ParameterError
        An option that does not exist or a value that cannot be.
    OutputError
        The folder cannot be written, or holds this association already and `overwrite` is false.
    """
    chosen = Options.from_keywords(instrument=instrument, seed=seed, shape=shape, **options)
    from gpucoron.simulate.run import run

    return run(output_dir, chosen)
