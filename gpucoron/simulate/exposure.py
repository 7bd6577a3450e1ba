"""Simulated exposures as the JWST datamodels describe them."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
from astropy.io.fits import HDUList
from astropy.time import Time
from stdatamodels import fits_support
from stdatamodels.jwst import datamodels

from gpucoron.io.files import output_file
from gpucoron.simulate.geometry import VA_SCALE, pixel_area
from gpucoron.simulate.wcs import build_gwcs, sip_keywords

SOFTWARE = "gpucoron.simulate"
STEPS = (
    "assign_wcs dark_sub dq_init flat_field gain_scale jump linearity photom ramp_fit refpix "
    "saturation superbias"
).split()
SR_PER_ARCSEC2 = (np.pi / 180 / 3600) ** 2
BARYCENTRIC_S = 69.184 + 280.0  # TDB - UTC and a light travel time


def write_exposure(directory: Path, instrument, bandpass, plan, n_references: int, frames) -> None:
    """Write one ``_calints`` file with stdatamodels; the dither pattern has `n_references`."""
    meta = _metadata(instrument, bandpass, plan, n_references)
    gwcs = build_gwcs(plan.pointing)
    tree = {
        "meta": meta | {"wcs": gwcs, "wcsinfo": _wcsinfo(plan.pointing, gwcs)},
        "data": frames.data,
        "err": frames.err,
        "dq": frames.dq,
        "area": pixel_area(plan.pointing.window),
        "int_times": _int_times(plan),
        "var_poisson": frames.var_poisson,
        "var_rnoise": frames.var_rnoise,
        "var_flat": frames.var_flat,
    }
    write_hdus(directory / meta["filename"], model_hdus(datamodels.CubeModel, tree))


def model_hdus(model: type, tree: dict) -> HDUList:
    """Convert a tree (``meta``, and arrays by name) to HDUs by a datamodel's schema.

    `model.save` would replace its date by the present one; here it stays, so that the same seed
    gives the same file.
    """
    tree["meta"]["model_type"] = model.__name__
    return fits_support.to_fits(tree, _schema(model))


@functools.cache
def _schema(model):
    return model().schema


def write_hdus(path: Path, hdus: HDUList) -> None:
    """Write a FITS file that gets its name only when it is complete."""
    content = io.BytesIO()  # an OSError within astropy would lose its errno
    hdus.writeto(content)
    with output_file(path) as file:
        file.write(content.getbuffer())


def _metadata(instrument, bandpass, plan, n_references):
    """Everything below ``meta``, but for the WCS."""
    window = plan.pointing.window
    aperture = window.aperture
    area = aperture.scale[0] * aperture.scale[1]
    angle = plan.pointing.roll_ref_deg + aperture.v3_idl_yangle_deg
    name = "SIM-SCIENCE" if plan.exptype == "science" else "SIM-REFERENCE"
    parts = ("name", "detector", "module", "channel", "pupil")
    hardware = {k: instrument.metadata[k] for k in parts if k in instrument.metadata}
    steps = STEPS if instrument.background_left == 1 else [*STEPS, "bkg_subtract"]
    return {
        "origin": "STSCI",
        "filename": f"{plan.root}_calints.fits",
        "telescope": "JWST",
        "calibration_software_version": SOFTWARE,
        "program": {"title": "Simulated coronagraphy", "pi_name": "gpucoron", "category": "COM"},
        "visit": {"type": "PRIME_TARGETED_FIXED", "tsovisit": False},
        "target": {
            "proposer_name": name,
            "catalog_name": name,
            "type": "FIXED",
            "ra": plan.target[0],
            "dec": plan.target[1],
        },
        "instrument": hardware | {"filter": bandpass.name, "coronagraph": bandpass.coronmsk},
        "subarray": subarray(instrument, bandpass, window),
        "dither": _dither(instrument, plan, n_references),
        "aperture": {
            "name": aperture.name,
            "pps_name": aperture.name,
            "position_angle": angle % 360,
        },
        "cal_step": dict.fromkeys(steps, "COMPLETE"),
        "velocity_aberration": {"scale_factor": VA_SCALE},
        "bunit_data": "MJy/sr",
        "bunit_err": "MJy/sr",
        "photometry": {
            "conversion_megajanskys": bandpass.photmjsr,
            "conversion_microjanskys": bandpass.photmjsr * 23.504430,
            "pixelarea_steradians": area * SR_PER_ARCSEC2,
            "pixelarea_arcsecsq": area,
        },
        "coordinates": {"reference_frame": "ICRS"},
        "pointing": _boresight(plan.pointing),
        "exposure": _exposure(instrument, plan),
        **_observation(instrument, plan),
    }


def subarray(instrument, bandpass, window) -> dict:
    """Return ``meta.subarray``: name, first pixel and size of what is read out."""
    return {
        "name": bandpass.subarray,
        "xstart": window.corner[0],
        "ystart": window.corner[1],
        "xsize": window.shape[1],
        "ysize": window.shape[0],
        "fastaxis": instrument.metadata["fastaxis"],
        "slowaxis": instrument.metadata["slowaxis"],
    }


def _exposure(instrument, plan):
    total = plan.n_integrations * plan.integration_s
    return {
        "prime_parallel": "PRIME",
        "type": instrument.exp_type,
        "start_time": plan.start_mjd,
        "mid_time": (plan.start_mjd + plan.end_mjd) / 2,
        "end_time": plan.end_mjd,
        "readpatt": instrument.metadata["readpatt"],
        "nints": plan.n_integrations,
        "integration_start": 1,
        "integration_end": plan.n_integrations,
        "ngroups": instrument.n_groups,
        "nframes": 1,
        "groupgap": 0,
        "frame_time": instrument.frame_time_s,
        "group_time": instrument.frame_time_s * instrument.frames_per_group,
        "integration_time": plan.integration_s,
        "exposure_time": total,
        "effective_exposure_time": total,
        "measurement_time": total * (1 - 1 / instrument.n_groups),
        "duration": total * 1.01,
        "elapsed_exposure_time": total * 1.01,
        "gain_factor": 1.0,
        "psf_reference": plan.exptype == "psf",
    }


def _observation(instrument, plan):
    start, end = (Time(t, format="mjd").isot for t in (plan.start_mjd, plan.end_mjd))
    date, _, clock = start.partition("T")
    name, activity, exposure, _ = plan.root.split("_")
    visit = name.removeprefix("jw")
    observation = {
        "date": date,
        "time": clock,
        "date_beg": start,
        "date_end": end,
        "obs_id": f"V{visit}P0000000003{activity}",
        "visit_id": visit,
        "program_number": visit[:5],
        "observation_number": visit[5:8],
        "visit_number": visit[8:],
        "visit_group": activity[:2],
        "sequence_id": activity[2],
        "activity_id": activity[3:].upper(),
        "exposure_number": str(int(exposure)),
        "template": instrument.metadata["template"],
    }
    return {"observation": observation, "date": end}


def _dither(instrument, plan, n_references):
    scale = plan.pointing.window.aperture.scale
    dither = {
        "primary_type": "NONE",
        "position_number": 1,
        "total_points": 1,
        "x_offset": plan.dither[0] * scale[0],
        "y_offset": plan.dither[1] * scale[1],
    }
    if plan.exptype == "psf":
        patterns = {"round": "9-POINT-CIRCLE", "bar": "5-POINT-BAR"}
        dither |= {
            "small_grid_pattern": patterns.get(instrument.kind, "9-POINT-SMALL-GRID"),
            "position_number": plan.number + 1,
            "total_points": n_references,
        }
    return dither


def _boresight(pointing):
    """Sky position of the V1 axis, and position angle of V3 there."""
    rotation = pointing.rotation()
    v1, v3 = rotation[:, 0], rotation[:, 2]
    ra, dec = np.arctan2(v1[1], v1[0]), np.arcsin(v1[2])
    east = v3 @ (-np.sin(ra), np.cos(ra), 0)
    north = v3 @ (-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec))
    return {
        "ra_v1": float(np.rad2deg(ra)) % 360,
        "dec_v1": float(np.rad2deg(dec)),
        "pa_v3": float(np.rad2deg(np.arctan2(east, north))) % 360,
    }


def _wcsinfo(pointing, gwcs):
    aperture = pointing.window.aperture
    corners = " ".join(f"{ra:.9f} {dec:.9f}" for ra, dec in gwcs.footprint())
    return {
        **sip_keywords(gwcs, pointing.window.centre),
        "s_region": f"POLYGON ICRS  {corners}",
        "v2_ref": aperture.v2_ref,
        "v3_ref": aperture.v3_ref,
        "vparity": aperture.vparity,
        "v3yangle": aperture.v3_idl_yangle_deg,
        "ra_ref": pointing.ra_ref,
        "dec_ref": pointing.dec_ref,
        "roll_ref": pointing.roll_ref_deg % 360,
    }


def _int_times(plan):
    """Start, middle and end of every integration, as the INT_TIMES extension has them."""
    n, day = plan.n_integrations, plan.integration_s / 86400
    columns = {"integration_number": np.arange(1, n + 1, dtype=np.int32)}
    for scale, offset_s in (("MJD_UTC", 0.0), ("BJD_TDB", BARYCENTRIC_S)):
        for which, share in (("start", 0.0), ("mid", 0.5), ("end", 1.0)):
            times = plan.start_mjd + (np.arange(n) + share) * day
            columns[f"int_{which}_{scale}"] = times + offset_s / 86400
    dtype = [(name, column.dtype) for name, column in columns.items()]
    return np.rec.fromarrays(list(columns.values()), dtype=dtype)
