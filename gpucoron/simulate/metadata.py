"""The metadata that a genuine exposure of this kind would carry."""

from __future__ import annotations

import numpy as np
from astropy.time import Time

from gpucoron.simulate.geometry import VA_SCALE
from gpucoron.simulate.wcs import s_region, sip_keywords

__all__ = ["SOFTWARE", "filter_name", "int_times", "metadata"]

SOFTWARE = "gpucoron.simulate"
STEPS = (
    "assign_wcs",
    "dark_sub",
    "dq_init",
    "flat_field",
    "gain_scale",
    "jump",
    "linearity",
    "photom",
    "ramp_fit",
    "refpix",
    "saturation",
    "superbias",
)


def filter_name(instrument, bandpass) -> str:
    """Name of a filter of an instrument."""
    return next(n for n, b in instrument.filters.items() if b is bandpass)


def _exposure_meta(instrument, plan):
    n, length = plan.n_integrations, plan.integration_s
    total = n * length
    end = plan.start_mjd + total / 86400
    start_time, end_time = (Time(t, format="mjd").isot for t in (plan.start_mjd, end))
    date, _, clock = start_time.partition("T")
    exposure = {
        "prime_parallel": "PRIME",
        "type": instrument.exp_type,
        "start_time": plan.start_mjd,
        "mid_time": (plan.start_mjd + end) / 2,
        "end_time": end,
        "readpatt": instrument.metadata["readpatt"],
        "nints": n,
        "integration_start": 1,
        "integration_end": n,
        "ngroups": instrument.n_groups,
        "nframes": 1,
        "groupgap": 0,
        "frame_time": instrument.frame_time_s,
        "group_time": instrument.frame_time_s * instrument.frames_per_group,
        "integration_time": length,
        "exposure_time": total,
        "effective_exposure_time": total,
        "measurement_time": total * (1 - 1 / instrument.n_groups),
        "duration": total * 1.01,
        "elapsed_exposure_time": total * 1.01,
        "gain_factor": 1.0,
        "psf_reference": plan.exptype == "psf",
    }
    fields = plan.root.split("_")
    visit, activity = fields[0][2:], fields[1]
    observation = {
        "date": date,
        "time": clock,
        "date_beg": start_time,
        "date_end": end_time,
        "obs_id": f"V{visit}P0000000003{activity}",
        "visit_id": visit,
        "program_number": visit[:5],
        "observation_number": visit[5:8],
        "visit_number": visit[8:],
        "visit_group": activity[:2],
        "sequence_id": activity[2],
        "activity_id": activity[3:].upper(),
        "exposure_number": str(int(fields[2])),
        "template": instrument.metadata["template"],
    }
    return {"exposure": exposure, "observation": observation, "date": end_time}


def metadata(instrument, bandpass, plan, n_references: int) -> dict:
    """All metadata of one exposure, nested as the datamodels nest them.

    Parameters
    ----------
    instrument, bandpass : Instrument, Filter
    plan : ExposurePlan
    n_references : int
        Positions of the dither pattern.

    Returns
    -------
    dict
        What the ASDF tree holds under ``meta``, but for the GWCS.
    """
    window = plan.pointing.window
    aperture = window.aperture
    area = aperture.scale[0] * aperture.scale[1]
    angle = plan.pointing.roll_ref_deg + aperture.v3_idl_yangle_deg
    name = "SIM-SCIENCE" if plan.exptype == "science" else "SIM-REFERENCE"
    parts = ("name", "detector", "module", "channel", "pupil")
    hardware = {k: instrument.metadata[k] for k in parts if k in instrument.metadata}
    fast, slow = (int(instrument.metadata[k]) for k in ("fastaxis", "slowaxis"))
    return {
        "origin": "STSCI",
        "filename": f"{plan.root}_calints.fits",
        "telescope": "JWST",
        "calibration_software_version": SOFTWARE,
        "model_type": "CubeModel",
        "program": {"title": "Simulated coronagraphy", "pi_name": "gpucoron", "category": "COM"},
        "visit": {"type": "PRIME_TARGETED_FIXED", "tsovisit": False},
        "target": {
            "proposer_name": name,
            "catalog_name": name,
            "type": "FIXED",
            "ra": plan.target[0],
            "dec": plan.target[1],
        },
        "instrument": hardware
        | {"filter": filter_name(instrument, bandpass), "coronagraph": bandpass.coronmsk},
        "subarray": {
            "name": bandpass.subarray,
            "xstart": window.corner[0],
            "ystart": window.corner[1],
            "xsize": window.shape[1],
            "ysize": window.shape[0],
            "fastaxis": fast,
            "slowaxis": slow,
        },
        "dither": _dither(instrument, plan, n_references),
        "aperture": {
            "name": aperture.name,
            "pps_name": aperture.name,
            "position_angle": angle % 360,
        },
        "cal_step": dict.fromkeys(STEPS, "COMPLETE")
        | ({"bkg_subtract": "COMPLETE"} if instrument.background_left < 1 else {}),
        "velocity_aberration": {"scale_factor": VA_SCALE},
        "bunit_data": "MJy/sr",
        "bunit_err": "MJy/sr",
        "photometry": {
            "conversion_megajanskys": bandpass.photmjsr,
            "conversion_microjanskys": bandpass.photmjsr * 23.504430,
            "pixelarea_steradians": area * (np.pi / 180 / 3600) ** 2,
            "pixelarea_arcsecsq": area,
        },
        "coordinates": {"reference_frame": "ICRS"},
        "pointing": _boresight(plan.pointing),
        "wcsinfo": _wcsinfo(plan.pointing),
        **_exposure_meta(instrument, plan),
    }


def _dither(instrument, plan, n_references):
    scale = plan.pointing.window.aperture.scale
    grid = {}
    if plan.exptype == "psf":
        grid["small_grid_pattern"] = (
            "9-POINT-CIRCLE" if instrument.kind == "round" else "9-POINT-SMALL-GRID"
        )
    return {
        "primary_type": "NONE",
        **grid,
        "position_number": plan.number + 1 if plan.exptype == "psf" else 1,
        "total_points": n_references if plan.exptype == "psf" else 1,
        "x_offset": plan.dither[0] * scale[0],
        "y_offset": plan.dither[1] * scale[1],
    }


def _boresight(pointing):
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


def _wcsinfo(pointing):
    aperture = pointing.window.aperture
    return {
        "wcsaxes": 2,
        **sip_keywords(pointing),
        "s_region": s_region(pointing),
        "v2_ref": aperture.v2_ref,
        "v3_ref": aperture.v3_ref,
        "vparity": aperture.vparity,
        "v3yangle": aperture.v3_idl_yangle_deg,
        "ra_ref": pointing.ra_ref,
        "dec_ref": pointing.dec_ref,
        "roll_ref": pointing.roll_ref_deg % 360,
    }


def int_times(plan) -> np.ndarray:
    """Table of the integrations' times, as the INT_TIMES extension holds it."""
    n, day = plan.n_integrations, plan.integration_s / 86400
    names = ["integration_number"] + [
        f"int_{w}_{s}" for s in ("MJD_UTC", "BJD_TDB") for w in ("start", "mid", "end")
    ]
    table = np.zeros(n, dtype=[(names[0], ">i4")] + [(k, ">f8") for k in names[1:]])
    table["integration_number"] = np.arange(1, n + 1)
    for which, share in (("start", 0.0), ("mid", 0.5), ("end", 1.0)):
        mjd = plan.start_mjd + (np.arange(n) + share) * day
        table[f"int_{which}_MJD_UTC"] = mjd
        table[f"int_{which}_BJD_TDB"] = mjd + (69.184 + 280.0) / 86400  # leap seconds, light time
    return table
