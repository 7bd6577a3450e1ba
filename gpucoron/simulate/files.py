"""Write association, psfmask and ground truth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from stdatamodels.jwst import datamodels

from gpucoron.io.files import output_file
from gpucoron.optics.masks import bar_half_width
from gpucoron.simulate.exposure import SOFTWARE, model_hdus, subarray, write_hdus

PROGRAM = "09100"
_ASN_IDS = {"round": "c1001", "4qpm": "c1002", "spot": "c1003", "bar": "c1004"}


def root_name(instrument, science: bool, number: int, n_science: int) -> str:
    """File name of an exposure without ``_calints.fits``; each roll is its own observation."""
    observation = number + 1 if science else n_science + 1
    exposure = 1 if science else number + 1
    group = instrument.exposure_id["science" if science else "psf"]
    suffix = instrument.metadata["suffix"]
    return f"jw{PROGRAM}{observation:03d}001_{group}_{exposure:05d}_{suffix}"


def association_name(instrument) -> str:
    """File name of the association."""
    return f"jw{PROGRAM}-{_ASN_IDS[instrument.kind]}_20240131t060000_coron3_00001_asn.json"


def write_association(path: Path, instrument, bandpass, plans) -> None:
    """Write the level-3 association of all exposures."""
    asn_id = _ASN_IDS[instrument.kind]
    optics = [bandpass.name, instrument.metadata.get("pupil"), bandpass.subarray]
    configuration = "-".join(o.lower() for o in optics if o)
    name = f"jw{PROGRAM}-{asn_id}_t001_{instrument.metadata['name'].lower()}_{configuration}"
    members = [{"expname": f"{p.root}_calints.fits", "exptype": p.exptype} for p in plans]
    content = {
        "asn_type": "coron3",
        "asn_rule": instrument.asn_rule,
        "version_id": None,
        "code_version": SOFTWARE,
        "degraded_status": "No known degraded exposures in association.",
        "program": PROGRAM,
        "constraints": "simulated",
        "asn_id": asn_id,
        "asn_pool": f"jw{PROGRAM}_simulated_pool.csv",
        "target": "t001",
        "products": [{"name": name, "members": members}],
    }
    _write_json(path, content, indent=4)


def _write_json(path, content, indent):
    with output_file(path) as file:
        file.write((json.dumps(content, indent=indent) + "\n").encode())


def write_scenes(directory: Path, root: str, scenes: list[np.ndarray]) -> None:
    """Write the noiseless integrations of one exposure as ``<root>_clean.npy``, float32."""
    with output_file(directory / f"{root}_clean.npy") as file:
        np.save(file, np.stack(scenes).astype(np.float32))


def _annulus(instrument, window, science_area):
    """Weights of the alignment, 1 where a pixel is used: a ring around the mask with soft edges.

    The hole is a disk, or behind a bar the strip that the bar half hides.
    """
    ny, nx = window.shape
    cx, cy = window.centre
    x, y = np.arange(nx), np.arange(ny)[:, None]
    r = np.hypot(x - cx, y - cy)
    hole = instrument.hole_radius / np.mean(window.aperture.scale)
    outer = max(min(max(cx, nx - 1 - cx), max(cy, ny - 1 - cy)) - 2, hole + 8)
    clear = r - hole
    if instrument.bar is not None:
        sx, sy = window.aperture.scale
        half_width = bar_half_width(instrument.bar, (x - cx) * sx)
        clear = np.where(half_width > 0, np.abs(y - cy) - half_width / sy, np.inf)
        outer = np.hypot(nx, ny)
    weight = np.clip(clear / 2 + 0.5, 0, 1) * np.clip((outer - r) / 4 + 0.5, 0, 1)
    edge = np.minimum(np.minimum(x, nx - 1 - x), np.minimum(y, ny - 1 - y))
    weight = weight * np.clip((edge - 1) / 4, 0, 1)
    shrunk = science_area.copy()
    for axis in (0, 1):
        for shift in (-3, 3):
            shrunk &= np.roll(science_area, shift, axis)
    return (weight * shrunk).astype(np.float32)


def write_psfmask(directory: Path, instrument, bandpass, window, science_area) -> Path:
    """Write ``psfmask.fits``: weights of the alignment, 1 where a pixel is used."""
    hardware = instrument.metadata
    meta = {
        "origin": "STSCI",
        "date": "2024-01-31T06:00:00",
        "filename": "psfmask.fits",
        "telescope": "JWST",
        "reftype": "PSFMASK",
        "pedigree": "DUMMY",
        "description": "Simulated PSF mask",
        "author": SOFTWARE,
        "useafter": "2022-01-01T00:00:00",
        "instrument": {
            "name": hardware["name"],
            "detector": hardware["detector"],
            "filter": bandpass.name,
            "coronagraph": bandpass.coronmsk,
        },
        "exposure": {"type": instrument.exp_type},
        "subarray": subarray(instrument, bandpass, window),
    }
    tree = {"meta": meta, "data": _annulus(instrument, window, science_area)}
    path = directory / "psfmask.fits"
    write_hdus(path, model_hdus(datamodels.PsfMaskModel, tree))
    return path


def write_truth(
    directory: Path, options, bandpass, window, plans, planets, truth
) -> tuple[Path, Path]:
    """Write the ground truth: ``truth.npz`` (arrays) and ``truth.json``; return their paths."""
    arrays = {
        "mask_centre": np.array(window.centre),
        "bad_pixels": truth["bad_pixels"],
        "planets_sky": np.array([[p.ra, p.dec, p.contrast, p.flux_mjysr] for p in planets]),
    }
    exposures = []
    for plan in plans:
        star_xy = np.array(plan.position) + plan.jitter
        arrays[f"star_{plan.root}"] = star_xy
        arrays[f"cosmic_rays_{plan.root}"] = np.packbits(truth["cosmic_rays"][plan.root], axis=-1)
        if plan.exptype == "science":
            arrays[f"planets_{plan.root}"] = np.array([p.pixels[plan.root] for p in planets])
        exposures.append(
            {
                "file": f"{plan.root}_calints.fits",
                "exptype": plan.exptype,
                "roll_ref_deg": plan.pointing.roll_ref_deg,
                "dither_px": list(plan.dither),
                "star_xy_px": np.round(star_xy, 6).tolist(),
                "mid_times_mjd": plan.mid_times.tolist(),
            }
        )
    chosen = dataclasses.asdict(options)
    if options.mask is None:  # as before there was a choice
        del chosen["mask"]
    summary = {
        "options": chosen,
        "filter": bandpass.name,
        "pixel_counting": "from 0, pixel centres at whole numbers",
        "mask_centre": list(window.centre),
        "star": {"ra": plans[0].target[0], "dec": plans[0].target[1]},
        "planets": [dataclasses.asdict(p) for p in planets],
        "exposures": exposures,
    }
    paths = directory / "truth.npz", directory / "truth.json"
    with output_file(paths[0]) as file:
        np.savez_compressed(file, **arrays)
    _write_json(paths[1], summary, indent=2)
    return paths
