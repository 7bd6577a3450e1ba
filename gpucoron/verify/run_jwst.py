"""``python -m gpucoron.verify.run_jwst JOB RECORD``: run jwst for a comparison.

No network is used: CRDS gets an empty cache, and jwst the psfmask by name.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpucoron.core.parameters import OWN
from gpucoron.verify.report import SHIFTS_FILE
from gpucoron.verify.runs import recorded

TRIAL_OFFSET_PX = 0.3
TRIAL_TOLERANCE_PX = 0.01


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run Coron3Pipeline; return versions, wall time (s), and whether this jwst aligns."""
    _isolate_crds(Path(job["crds_dir"]))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    import jwst
    import numpy as np
    from jwst.coron import imageregistration
    from jwst.pipeline import Coron3Pipeline

    trial = try_alignment(imageregistration)
    if job["double_fft"]:
        _transform_in_double(imageregistration)
    fits = _record_fits(imageregistration)
    steps = {step: dict(values) for step, values in job["steps"].items()}
    steps.setdefault("align_refs", {})["override_psfmask"] = job["psfmask"]
    start = time.perf_counter()
    Coron3Pipeline.call(job["asn"], steps=steps, save_results=True, output_dir=job["output_dir"])
    wall_s = time.perf_counter() - start
    shifts = dict(zip(job["science"], fits, strict=False))
    Path(job["output_dir"], SHIFTS_FILE).write_text(json.dumps(shifts), encoding="utf-8")
    return {
        "version": jwst.__version__,
        "numpy": np.__version__,
        "wall_s": wall_s,
        "alignment": trial,
        "double_fft": job["double_fft"],
    }


def step_parameters(changed: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Convert gpucoron's parameters, by full name, to those of jwst's steps."""
    steps: dict[str, dict[str, Any]] = {}
    for name, value in changed.items():
        step, _, parameter = name.partition(".")
        if parameter and name not in OWN:
            plain = list(value) if isinstance(value, tuple) else value
            if name == "outlier_detection.snr" and len(str(value).split()) == 1:
                plain = f"{value} {value}"  # jwst needs a second number, which it never uses
            steps.setdefault(step, {})[parameter] = plain
    return steps


def _isolate_crds(folder: Path) -> None:
    """Give CRDS a cache with nothing but its configuration; call before CRDS is imported."""
    for name in [n for n in os.environ if n.startswith("CRDS_")]:
        del os.environ[name]
    context = "jwst_0000.pmap"
    facts = {
        "observatory": "jwst",
        "operational_context": context,
        "latest_context": context,
        "bad_files_list": [],
        "force_remote_mode": False,
        "last_synced": "never",
    }
    config = folder / "config" / "jwst"
    config.mkdir(parents=True, exist_ok=True)
    (config / "server_config").write_text(repr(facts))
    os.environ |= {
        "CRDS_PATH": str(folder),
        "CRDS_CONTEXT": context,
        "CRDS_OBSERVATORY": "jwst",
        # CRDS never connects to a server of this name
        "CRDS_SERVER_URL": "https://crds-serverless-mode.stsci.edu",
        "STPIPE_DISABLE_CRDS_STEPPARS": "true",
    }


def try_alignment(imageregistration: Any) -> dict[str, Any]:
    """Test whether jwst finds the known offset between two images in single precision."""
    import numpy as np

    def star(offset):
        x = np.arange(32) - 15.5
        profile = np.exp(-0.5 * ((x - offset) / 2.5) ** 2)
        return (1000 * np.outer(np.exp(-0.5 * (x / 2.5) ** 2), profile)).astype(np.float32)

    found = imageregistration.align_array(
        star(0.0),
        star(TRIAL_OFFSET_PX)[None],
        mask=np.ones((32, 32), np.float32),
        return_aligned=False,
    )
    fitted = float(np.ravel(found)[0])
    return {
        "offset_px": TRIAL_OFFSET_PX,
        "fitted_px": fitted,
        "aligns": abs(fitted - TRIAL_OFFSET_PX) < TRIAL_TOLERANCE_PX,
    }


def _transform_in_double(imageregistration: Any) -> None:
    """Run the Fourier shifts of the alignment in double precision, with any NumPy."""
    import numpy as np

    shift_as_it_is = imageregistration.fourier_imshift

    def shift_in_double(image, shift):
        return shift_as_it_is(np.array(image, dtype=np.float64), shift)

    imageregistration.fourier_imshift = shift_in_double


def _record_fits(imageregistration: Any) -> list[list[list[float]]]:
    """Record the fits of every call of align_array: x, y and beta of each reference."""
    fits: list[list[list[float]]] = []
    align_array = imageregistration.align_array

    def align_and_keep(*args, **kwargs):
        found = align_array(*args, **kwargs)
        shifts = found[1] if isinstance(found, tuple) else found
        fits.append([[float(v) for v in row] for row in shifts])
        return found

    imageregistration.align_array = align_and_keep
    return fits


if __name__ == "__main__":
    sys.exit(recorded(run))
