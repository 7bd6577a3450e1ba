"""Simulate an association: plan the exposures, compute their images, write the files."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from gpucoron.errors import OutputError, ParameterError
from gpucoron.optics.instruments import Filter, choose_optics, load_aperture
from gpucoron.simulate import files
from gpucoron.simulate.detector import Detector
from gpucoron.simulate.exposure import write_exposure
from gpucoron.simulate.geometry import Pointing, Window, aim
from gpucoron.simulate.options import Options, Planet, PlanetTruth, Simulation
from gpucoron.simulate.scene import Scene, offset_sky

log = logging.getLogger(__name__)

START_MJD = 60340.25
STAR = (150.2, -30.4)
REFERENCE_STAR = (152.3, -29.7)
ROLL_DEG = 110.0
BETWEEN_DITHERS_S, BETWEEN_ROLLS_S, BETWEEN_TARGETS_S = 80.0, 1500.0, 3600.0
DITHER_ERROR_PX = 0.02


@dataclass(frozen=True)
class ExposurePlan:
    """Timing and pointing of one exposure."""

    root: str
    exptype: str  # science, psf
    number: int  # within its type, from 0
    start_mjd: float
    integration_s: float
    position: tuple[float, float]  # mean position of the star (x, y), px
    dither: tuple[float, float]  # commanded, px
    jitter: np.ndarray  # (n, 2) px
    pointing: Pointing
    target: tuple[float, float]  # ra, dec

    @property
    def n_integrations(self) -> int:
        """Number of integrations."""
        return len(self.jitter)

    @property
    def end_mjd(self) -> float:
        """End of the last integration, MJD."""
        return self.start_mjd + self.n_integrations * self.integration_s / 86400

    @property
    def mid_times(self) -> np.ndarray:
        """(n,) float64, MJD."""
        return self.start_mjd + (np.arange(self.n_integrations) + 0.5) * self.integration_s / 86400


def dither_pattern(count: int, step_px: float) -> np.ndarray:
    """Small-grid dither: the centre, then eight points on a circle, in opposite pairs.

    `step_px` is the distance between neighbours on the circle. Returns (count, 2) px; from the
    tenth point on with half the radius, then a third, ...
    """
    radius_px = step_px / (2 * np.sin(np.pi / 8))
    angles = np.deg2rad([0, 180, 90, 270, 45, 225, 135, 315])
    points = [(0.0, 0.0)]
    while len(points) < count:
        circle = radius_px / (1 + (len(points) - 1) // 8)
        points += [(circle * np.cos(a), circle * np.sin(a)) for a in angles]
    return np.array(points)[:count]


def dithers_across(count: int, step_px: float) -> np.ndarray:
    """Small-grid dither across a bar: 0, 1, -1, 2, -2, ... steps along y. (count, 2) px."""
    steps = [(k + 1) // 2 * (1 if k % 2 else -1) for k in range(count)]
    return np.array([(0.0, step_px * step) for step in steps])


def run(output_dir: str | PathLike, options: Options) -> Simulation:
    """Simulate and write; see `gpucoron.simulate.simulate`."""
    instrument, bandpass = choose_optics(options.instrument, options.filter, options.mask)
    window = _window(bandpass, options.shape)
    directory = _directory(output_dir)
    streams = np.random.SeedSequence(options.seed).spawn(4)
    plans = _plan(instrument, bandpass, window, options, np.random.default_rng(streams[0]))
    asn = directory / files.association_name(instrument)
    if asn.exists() and not options.overwrite:
        raise OutputError(f"{asn} exists; expected a new folder or overwrite=True (--overwrite)")
    planets = _planets(instrument, options, plans, window)
    truth = _expose_all(instrument, bandpass, window, options, plans, planets, directory, streams)
    psfmask = files.write_psfmask(directory, instrument, bandpass, window, truth["science_area"])
    truth_paths = files.write_truth(directory, options, bandpass, window, plans, planets, truth)
    files.write_association(asn, instrument, bandpass, plans)
    paths = [directory / f"{p.root}_calints.fits" for p in plans]
    log.info("simulated %d exposures of %s in %s", len(plans), instrument.name, directory)
    return Simulation(
        directory,
        asn,
        psfmask,
        *truth_paths,
        tuple(p for p, plan in zip(paths, plans, strict=True) if plan.exptype == "science"),
        tuple(p for p, plan in zip(paths, plans, strict=True) if plan.exptype == "psf"),
        STAR,
        planets,
    )


def _window(bandpass: Filter, shape: tuple[int, int] | None) -> Window:
    aperture = load_aperture(bandpass.aperture)
    if shape is not None and any(s > a for s, a in zip(shape, aperture.shape, strict=True)):
        raise ParameterError(
            f"shape is {shape}, expected at most {aperture.shape} (rows, "
            f"columns), the subarray {bandpass.subarray}"
        )
    return Window.centred(aperture, shape)


def _or(chosen, default):
    return default if chosen is None else chosen


def _directory(path) -> Path:
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for part in directory.glob(".*_calints.fits.*.part"):  # of a simulation that was killed
            part.unlink()
    except OSError as error:
        raise OutputError(f"{directory} cannot be written: {error.strerror}") from error
    return directory


def _plan(instrument, bandpass, window, options, rng):
    """Plan the exposures in time: the rolls, then the reference star."""
    integration_s = instrument.frame_time_s * instrument.frames_per_group * instrument.n_groups
    counts = (*options.n_integrations, *options.n_reference_integrations)
    pattern = dithers_across if instrument.kind == "bar" else dither_pattern
    dithers = pattern(max(options.n_references, 1), _or(options.dither_px, instrument.dither_px))
    miss_px = _or(options.acquisition_px, instrument.acquisition_px)
    visits = miss_px * rng.standard_normal((options.n_science + 1, 2))
    plans, start = [], START_MJD
    for k, count in enumerate(counts):
        science = k < options.n_science
        number = k if science else k - options.n_science
        dither = np.zeros(2) if science else dithers[number]
        miss = visits[min(k, options.n_science)] + (
            0 if science else DITHER_ERROR_PX * rng.standard_normal(2)
        )
        jitter = options.jitter_px * rng.standard_normal((count, 2))
        if options.n_optical_states:
            jitter = jitter[np.arange(count) % options.n_optical_states]
        position = _pair(np.array(window.centre) + dither + miss)
        target = STAR if science else REFERENCE_STAR
        roll = ROLL_DEG + (options.roll_step * number if science else 0.0)
        plans.append(
            ExposurePlan(
                files.root_name(instrument, science, number, options.n_science),
                "science" if science else "psf",
                number,
                start,
                integration_s,
                position,
                _pair(dither),
                jitter,
                aim(window, *target, roll, position),
                target,
            )
        )
        pause = BETWEEN_DITHERS_S
        if science:
            pause = BETWEEN_ROLLS_S if k + 1 < options.n_science else BETWEEN_TARGETS_S
        start += (count * integration_s + pause) / 86400
    return plans


def _pair(values) -> tuple[float, float]:
    first, second = values
    return float(first), float(second)


def _planets(instrument, options, plans, window):
    wanted = options.planets
    if wanted is None:
        wanted = tuple(Planet(*p) for p in instrument.planets)
    flux = _or(options.star_flux_jy, instrument.star_flux_jy)
    scale = window.aperture.scale
    pixel_sr = scale[0] * scale[1] * (np.pi / 180 / 3600) ** 2
    planets = []
    for p in wanted:
        ra, dec = offset_sky(*STAR, p.separation, p.angle)
        pixels = {
            plan.root: _pair(plan.pointing.sky_to_pixel(ra, dec))
            for plan in plans
            if plan.exptype == "science"
        }
        planets.append(
            PlanetTruth(
                p.separation,
                p.angle,
                p.contrast,
                ra,
                dec,
                p.contrast * flux,
                p.contrast * flux * 1e-6 / pixel_sr,
                pixels,
            )
        )
    return tuple(planets)


def _expose_all(instrument, bandpass, window, options, plans, planets, directory, streams):
    scene = Scene(instrument, bandpass, window)
    left = _or(options.background_left, instrument.background_left)
    detector = Detector(
        instrument,
        bandpass,
        window,
        plans[0].integration_s,
        np.random.default_rng(streams[1]),
        subtracted=scene.background * (1 - left),
        bad_pixels=options.bad_pixels,
        noise=options.noise,
        cosmic_rays=options.cosmic_rays,
        saturation_mjysr=options.saturation_mjysr,
    )
    wavefront = scene.wavefront(
        np.concatenate([p.mid_times for p in plans]),
        _or(options.wavefront_nm, instrument.wavefront_nm),
        _or(options.drift_nm, instrument.drift_nm),
        np.random.default_rng(streams[2]),
    )
    truth = {"science_area": detector.science_area, "bad_pixels": detector.flags, "cosmic_rays": {}}
    first = 0
    for plan, stream in zip(plans, streams[3].spawn(len(plans)), strict=True):
        scenes = _scenes(scene, wavefront, first, plan, planets, options)
        rngs = {
            n: np.random.default_rng(s)
            for n, s in zip(("noise", "hits", "jumps"), stream.spawn(3), strict=True)
        }
        frames = detector.expose(scenes, rngs)
        write_exposure(directory, instrument, bandpass, plan, options.n_references, frames)
        if options.truth_scenes:
            files.write_scenes(directory, plan.root, [s - detector.subtracted for s in scenes])
        truth["cosmic_rays"][plan.root] = frames.cosmic_rays
        first += plan.n_integrations
    return truth


def _scenes(scene, wavefront, first, plan, planets, options):
    """Noiseless images of every integration; equal where optical states repeat."""
    flux = _or(options.star_flux_jy, scene.instrument.star_flux_jy)
    companions = None
    if plan.exptype == "psf":
        flux *= options.reference_brightness
    else:
        disk = scene.ring(plan.pointing, plan.target) if options.disk else None
        companions = scene.companions(
            [(p.flux_jy, p.pixels[plan.root]) for p in planets], wavefront.opd(first), disk
        )
    states = min(plan.n_integrations, options.n_optical_states or plan.n_integrations)
    images = []
    for k in range(states):
        position = (plan.position[0] + plan.jitter[k, 0], plan.position[1] + plan.jitter[k, 1])
        star = scene.star(flux, wavefront.opd(first + k), position)
        images.append(scene.image(star, companions, tuple(plan.jitter[k])))
    return [images[k % states] for k in range(plan.n_integrations)]
