"""Which metadata value stands under which keyword of a ``_calints`` file, and in which HDU.

The pairing is that of the JWST datamodels schema; a line starting with ``#`` begins a section of
the header.
"""

from __future__ import annotations

__all__ = ["PRIMARY", "SCI", "cards"]

_PRIMARY = """
DATE     date | UTC date of file creation
ORIGIN   origin | organisation that made the file
FILENAME filename | name of the file
CAL_VER  calibration_software_version | software that made the file
DATAMODL model_type | type of data model
TELESCOP telescope | telescope
# Program information
TITLE    program.title | title of the program
PI_NAME  program.pi_name | principal investigator
CATEGORY program.category | program category
# Observation identifiers
DATE-OBS observation.date | [yyyy-mm-dd] UTC date at exposure start
TIME-OBS observation.time | [hh:mm:ss.sss] UTC time at exposure start
DATE-BEG observation.date_beg | exposure start
DATE-END observation.date_end | exposure end
OBS_ID   observation.obs_id | observation identifier
VISIT_ID observation.visit_id | visit identifier
PROGRAM  observation.program_number | program number
OBSERVTN observation.observation_number | observation number
VISIT    observation.visit_number | visit number
VISITGRP observation.visit_group | visit group
SEQ_ID   observation.sequence_id | parallel sequence
ACT_ID   observation.activity_id | activity
EXPOSURE observation.exposure_number | exposure number
TEMPLATE observation.template | observation template
# Visit information
VISITYPE visit.type | type of visit
TSOVISIT visit.tsovisit | time series observation?
# Target information
TARGPROP target.proposer_name | proposer's name of the target
TARGNAME target.catalog_name | catalogue name of the target
TARGTYPE target.type | type of target
TARG_RA  target.ra | [deg] target RA at mid exposure
TARG_DEC target.dec | [deg] target Dec at mid exposure
# Instrument configuration information
INSTRUME instrument.name | instrument
DETECTOR instrument.detector | detector
MODULE   instrument.module | NIRCam module
CHANNEL  instrument.channel | NIRCam channel
FILTER   instrument.filter | filter
PUPIL    instrument.pupil | pupil wheel element
CORONMSK instrument.coronagraph | coronagraph mask
# Exposure parameters
EXPRIPAR exposure.prime_parallel | prime or parallel exposure
EXP_TYPE exposure.type | type of exposure
EXPSTART exposure.start_time | [d] exposure start, MJD
EXPMID   exposure.mid_time | [d] exposure middle, MJD
EXPEND   exposure.end_time | [d] exposure end, MJD
READPATT exposure.readpatt | readout pattern
NINTS    exposure.nints | integrations in the exposure
INTSTART exposure.integration_start | first integration in this file
INTEND   exposure.integration_end | last integration in this file
NGROUPS  exposure.ngroups | groups in an integration
NFRAMES  exposure.nframes | frames in a group
GROUPGAP exposure.groupgap | frames dropped between groups
TFRAME   exposure.frame_time | [s] time between frames
TGROUP   exposure.group_time | [s] time between groups
EFFINTTM exposure.integration_time | [s] effective integration time
EFFEXPTM exposure.exposure_time | [s] effective exposure time
TMEASURE exposure.measurement_time | [s] measurement time
DURATION exposure.duration | [s] duration of the exposure
GAINFACT exposure.gain_factor | gain scale factor
IS_PSF   exposure.psf_reference | is this a PSF reference?
# Subarray parameters
SUBARRAY subarray.name | subarray
SUBSTRT1 subarray.xstart | first column on the detector
SUBSTRT2 subarray.ystart | first row on the detector
SUBSIZE1 subarray.xsize | columns
SUBSIZE2 subarray.ysize | rows
FASTAXIS subarray.fastaxis | fast readout direction
SLOWAXIS subarray.slowaxis | slow readout direction
# Dither information
PATTTYPE dither.primary_type | dither pattern
SMGRDPAT dither.small_grid_pattern | small-grid dither pattern
PATT_NUM dither.position_number | position in the pattern
NUMDTHPT dither.total_points | positions in the pattern
XOFFSET  dither.x_offset | [arcsec] offset along ideal x
YOFFSET  dither.y_offset | [arcsec] offset along ideal y
# Aperture information
APERNAME aperture.name | SIAF aperture
PPS_APER aperture.pps_name | aperture as planned
# Calibration step information
S_WCS    cal_step.assign_wcs |
S_BKDSUB cal_step.bkg_subtract |
S_DARK   cal_step.dark_sub |
S_DQINIT cal_step.dq_init |
S_FLAT   cal_step.flat_field |
S_GANSCL cal_step.gain_scale |
S_JUMP   cal_step.jump |
S_LINEAR cal_step.linearity |
S_PHOTOM cal_step.photom |
S_RAMP   cal_step.ramp_fit |
S_REFPIX cal_step.refpix |
S_SATURA cal_step.saturation |
S_SUPERB cal_step.superbias |
"""

_SCI = """
XPOSURE  exposure.effective_exposure_time | [s] effective exposure time
TELAPSE  exposure.elapsed_exposure_time | [s] elapsed time
PA_APER  aperture.position_angle | [deg] position angle of the aperture
# Velocity aberration correction information
VA_SCALE velocity_aberration.scale_factor | velocity aberration scale
BUNIT    bunit_data | units of the array
# Photometry information
PHOTMJSR photometry.conversion_megajanskys | MJy/sr that give 1 DN/s
PHOTUJA2 photometry.conversion_microjanskys | uJy/arcsec^2 that give 1 DN/s
PIXAR_SR photometry.pixelarea_steradians | nominal pixel area, sr
PIXAR_A2 photometry.pixelarea_arcsecsq | nominal pixel area, arcsec^2
# Information about the coordinates in the file
RADESYS  coordinates.reference_frame | reference frame
# Spacecraft pointing information
RA_V1    pointing.ra_v1 | [deg] RA of the V1 axis
DEC_V1   pointing.dec_v1 | [deg] Dec of the V1 axis
PA_V3    pointing.pa_v3 | [deg] position angle of V3
# WCS parameters
WCSAXES  wcsinfo.wcsaxes |
CRPIX1   wcsinfo.crpix1 |
CRPIX2   wcsinfo.crpix2 |
CRVAL1   wcsinfo.crval1 |
CRVAL2   wcsinfo.crval2 |
CTYPE1   wcsinfo.ctype1 |
CTYPE2   wcsinfo.ctype2 |
CUNIT1   wcsinfo.cunit1 |
CUNIT2   wcsinfo.cunit2 |
CD1_1    wcsinfo.cd1_1 |
CD1_2    wcsinfo.cd1_2 |
CD2_1    wcsinfo.cd2_1 |
CD2_2    wcsinfo.cd2_2 |
S_REGION wcsinfo.s_region | footprint on the sky
V2_REF   wcsinfo.v2_ref | [arcsec] V2 of the reference point
V3_REF   wcsinfo.v3_ref | [arcsec] V3 of the reference point
VPARITY  wcsinfo.vparity | sense of rotation, ideal to V2V3
V3I_YANG wcsinfo.v3yangle | [deg] angle from V3 to ideal y
RA_REF   wcsinfo.ra_ref | [deg] RA of the reference point
DEC_REF  wcsinfo.dec_ref | [deg] Dec of the reference point
ROLL_REF wcsinfo.roll_ref | [deg] V3 roll at the reference point
"""

_SIP = [f"{p.upper()}_ORDER wcsinfo.{p}_order |" for p in ("a", "b", "ap", "bp")] + [
    f"{p.upper()}_{i}_{j} wcsinfo.{p}_{i}_{j} |"
    for p in ("a", "b", "ap", "bp")
    for i in range(7)
    for j in range(7)
    if 2 <= i + j <= 6
]

PRIMARY = tuple(_PRIMARY.strip().splitlines())
SCI = (*_SCI.strip().splitlines(), *_SIP)


def cards(lines: tuple[str, ...], meta: dict) -> list[tuple[str, object, str]]:
    """Turn metadata into header cards, leaving out what the exposure does not have.

    Parameters
    ----------
    lines : tuple of str
        `PRIMARY` or `SCI`.
    meta : dict
        Nested metadata as the ASDF tree holds it under ``meta``.

    Returns
    -------
    list of (keyword, value, comment)
        The keyword is empty for the blank lines and titles of sections.
    """
    made = []
    for line in lines:
        if line.startswith("#"):
            made += [("", "", ""), ("", line[2:].rjust(len(line) + 6), ""), ("", "", "")]
            continue
        name, _, comment = line.partition("|")
        keyword, path = name.split()
        value = meta
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            made.append((keyword, value, comment.strip()))
    return made
