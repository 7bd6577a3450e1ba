"""``python -m gpucoron.verify.run_gpucoron JOB RECORD``: run gpucoron for a comparison."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from gpucoron.verify.runs import recorded


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run gpucoron with the preset "jwst"; return versions, wall time and time by step (s)."""
    import numpy as np

    from gpucoron import __version__
    from gpucoron import api as pipeline
    from gpucoron.core.parameters import Parameters
    from gpucoron.io import association, exposures, products, wcs  # noqa: F401  imports are not timed
    from gpucoron.steps import align_refs, klip, resample  # noqa: F401

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    parameters = Parameters.from_sources(
        sets=job["set"], preset="jwst", keywords={"align": job["align"]}
    )
    start = time.perf_counter()
    result = pipeline.run(
        job["asn"],
        device=job["device"],
        output_dir=job["output_dir"],
        psfmask=job["psfmask"],
        parameters=parameters,
        keep=(),
    )
    return {
        "version": __version__,
        "numpy": np.__version__,
        "device": result.device.label,
        "wall_s": time.perf_counter() - start,
        "steps": result.timings,
        "warnings": list(result.warnings),
    }


if __name__ == "__main__":
    sys.exit(recorded(run))
