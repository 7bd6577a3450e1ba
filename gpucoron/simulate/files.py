"""Write exposures, association, psfmask and truth."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
from pathlib import Path

import asdf
import numpy as np
from asdf.tagged import TaggedDict
from astropy.io import fits

from gpucoron.errors import OutputError
from gpucoron.simulate.geometry import pixel_area
from gpucoron.simulate.keywords import PRIMARY, SCI, cards
from gpucoron.simulate.metadata import SOFTWARE, filter_name, int_times, metadata
from gpucoron.simulate.wcs import build_gwcs

__all__ = [
    "association_name",
    "root_name",
    "write_association",
    "write_exposure",
    "write_psfmask",
    "write_scenes",
    "write_truth",
    "writing",
]

PROGRAM = "09100"
PLANES = (("SCI", "data"), ("ERR", "err"), ("DQ", "dq"))
VARIANCES = (("VAR_POISSON", "var_poisson"), ("VAR_RNOISE", "var_rnoise"), ("VAR_FLAT", "var_flat"))
_ASN_IDS = {"round": "c1001", "4qpm": "c1002", "spot": "c1003"}


@contextlib.contextmanager
def writing(directory: Path):
    """Turn the operating system's refusals into `OutputError`.

    Parameters
    ----------
    directory : Path
        Named where the error names no file.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or directory
        raise OutputError(f"{where} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _complete(path: Path):
    """Write under another name and rename when all is written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    optics = [
        filter_name(instrument, bandpass),
        instrument.metadata.get("pupil"),
        bandpass.subarray,
    ]
    product = "_".join(
        [
            f"jw{PROGRAM}-{asn_id}",
            "t001",
            instrument.metadata["name"].lower(),
            "-".join(o.lower() for o in optics if o),
        ]
    )
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
        "products": [{"name": product, "members": members}],
    }
    with _complete(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _asdf_hdu(hdus, meta, gwcs_object):
    tree = {"meta": meta | {"wcs": gwcs_object}}
    for hdu in hdus[1:]:
        dtype = hdu.data.dtype
        kinds = (
            [
                {
                    "byteorder": "big",
                    "datatype": f"{'int' if d.kind == 'i' else 'float'}{8 * d.itemsize}",
                    "name": k,
                }
                for k, (d, _) in dtype.fields.items()
            ]
            if dtype.fields
            else dtype.name
        )
        tree[hdu.name.lower() if hdu.name != "SCI" else "data"] = TaggedDict(
            {
                "source": f"fits:{hdu.name},{hdu.ver}",
                "shape": list(hdu.data.shape),
                "datatype": kinds,
                "byteorder": "big",
            },
            "tag:stsci.edu:asdf/core/ndarray-1.1.0",
        )
    buffer = io.BytesIO()
    asdf.AsdfFile(tree).write_to(buffer)
    content = np.frombuffer(buffer.getvalue(), np.uint8)
    column = fits.Column("ASDF_METADATA", f"{content.size}B", array=content[None, :])
    return fits.BinTableHDU.from_columns([column], name="ASDF")


def _header(lines, meta):
    header = fits.Header()
    for keyword, value, comment in cards(lines, meta):
        header.append((keyword, value, comment), end=True)
    return header


def write_exposure(directory: Path, instrument, bandpass, plan, options, frames) -> Path:
    """Write one ``_calints`` file.

    Parameters
    ----------
    directory : Path
    instrument, bandpass : Instrument, Filter
    plan : ExposurePlan
    options : Options
    frames : Frames

    Returns
    -------
    Path
    """
    meta = metadata(instrument, bandpass, plan, options.n_references)
    hdus = fits.HDUList([fits.PrimaryHDU(header=_header(PRIMARY, meta))])
    for name, field in PLANES:
        hdus.append(fits.ImageHDU(getattr(frames, field), name=name))
    hdus["SCI"].header.extend(_header(SCI, meta))
    hdus["ERR"].header["BUNIT"] = (meta["bunit_err"], "units of the array")
    hdus.append(fits.ImageHDU(pixel_area(plan.pointing.window), name="AREA"))
    hdus.append(fits.BinTableHDU(int_times(plan), name="INT_TIMES"))
    for name, field in VARIANCES:
        hdus.append(fits.ImageHDU(getattr(frames, field), name=name))
    for hdu in hdus[1:]:
        hdu.ver = 1
    hdus.append(_asdf_hdu(hdus, meta, build_gwcs(plan.pointing)))
    path = directory / meta["filename"]
    with _complete(path) as temporary:
        hdus.writeto(temporary, overwrite=True)
    return path


def write_scenes(directory: Path, root: str, scenes: list[np.ndarray]) -> Path:
    """Write the clean integrations of one exposure as ``<root>_clean.npy``, float32."""
    path = directory / f"{root}_clean.npy"
    with _complete(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.stack(scenes).astype(np.float32))
    return path


def _annulus(instrument, window, science_area):
    """Weights of the registration: soft-edged ring round the mask, one where used."""
    ny, nx = window.shape
    cx, cy = window.centre
    x, y = np.arange(nx) - cx, (np.arange(ny) - cy)[:, None]
    r = np.hypot(x, y)
    hole = instrument.hole_radius / np.mean(window.aperture.scale)
    outer = max(min(max(cx, nx - 1 - cx), max(cy, ny - 1 - cy)) - 2, hole + 8)
    weight = np.clip((r - hole) / 2 + 0.5, 0, 1) * np.clip((outer - r) / 4 + 0.5, 0, 1)
    edge = np.minimum(
        np.minimum(np.arange(nx), nx - 1 - np.arange(nx)),
        np.minimum(np.arange(ny), ny - 1 - np.arange(ny))[:, None],
    )
    weight = weight * np.clip((edge - 1) / 4, 0, 1)
    shrunk = science_area.copy()
    for axis in (0, 1):
        for shift in (-3, 3):
            shrunk &= np.roll(science_area, shift, axis)
    return (weight * shrunk).astype(np.float32)


def write_psfmask(directory: Path, instrument, bandpass, window, science_area) -> Path:
    """Write ``psfmask.fits``; it multiplies the residual of the fit, 1 where a pixel is used."""
    mask = _annulus(instrument, window, science_area)
    header = fits.Header()
    for keyword, value in (
        ("ORIGIN", "STSCI"),
        ("FILENAME", "psfmask.fits"),
        ("DATAMODL", "PsfMaskModel"),
        ("TELESCOP", "JWST"),
        ("REFTYPE", "PSFMASK"),
        ("PEDIGREE", "DUMMY"),
        ("DESCRIP", "Simulated PSF mask"),
        ("AUTHOR", SOFTWARE),
        ("USEAFTER", "2022-01-01T00:00:00"),
        ("INSTRUME", instrument.metadata["name"]),
        ("DETECTOR", instrument.metadata["detector"]),
        ("FILTER", filter_name(instrument, bandpass)),
        ("CORONMSK", bandpass.coronmsk),
        ("EXP_TYPE", instrument.exp_type),
        ("SUBARRAY", bandpass.subarray),
        ("SUBSTRT1", window.corner[0]),
        ("SUBSTRT2", window.corner[1]),
        ("SUBSIZE1", window.shape[1]),
        ("SUBSIZE2", window.shape[0]),
        ("FASTAXIS", int(instrument.metadata["fastaxis"])),
        ("SLOWAXIS", int(instrument.metadata["slowaxis"])),
    ):
        header[keyword] = value
    path = directory / "psfmask.fits"
    with _complete(path) as temporary:
        fits.HDUList([fits.PrimaryHDU(header=header), fits.ImageHDU(mask, name="SCI")]).writeto(
            temporary, overwrite=True
        )
    return path


def write_truth(
    directory: Path,
    options,
    instrument,
    bandpass,
    window,
    plans,
    planets,
    truth,
) -> tuple[Path, Path]:
    """Write ``truth.npz`` (arrays) and ``truth.json`` (to read).

    Returns
    -------
    (Path, Path)
    """
    arrays = {
        "mask_centre": np.array(window.centre),
        "bad_pixels": truth["bad_pixels"],
        "planets_sky": np.array([[p.ra, p.dec, p.contrast, p.flux_mjysr] for p in planets]),
    }
    exposures = []
    for plan in plans:
        places = np.array(plan.place) + plan.jitter
        arrays[f"star_{plan.root}"] = places
        arrays[f"cosmic_rays_{plan.root}"] = np.packbits(truth["cosmic_rays"][plan.root], axis=-1)
        if plan.exptype == "science":
            arrays[f"planets_{plan.root}"] = np.array([p.pixels[plan.root] for p in planets])
        exposures.append(
            {
                "file": f"{plan.root}_calints.fits",
                "exptype": plan.exptype,
                "roll_ref_deg": plan.pointing.roll_ref_deg,
                "dither_px": list(plan.dither),
                "star_xy_px": np.round(places, 6).tolist(),
                "mid_times_mjd": plan.mid_times.tolist(),
            }
        )
    summary = {
        "options": dataclasses.asdict(options),
        "filter": filter_name(instrument, bandpass),
        "pixel_counting": "from 0, pixel centres at whole numbers",
        "mask_centre": list(window.centre),
        "star": {"ra": plans[0].target[0], "dec": plans[0].target[1]},
        "planets": [dataclasses.asdict(p) for p in planets],
        "exposures": exposures,
    }
    paths = directory / "truth.npz", directory / "truth.json"
    with _complete(paths[0]) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    with _complete(paths[1]) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return paths
