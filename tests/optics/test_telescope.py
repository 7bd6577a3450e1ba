"""Masks of the coronagraphs against direct propagation, analytic transforms and the literature."""

import numpy as np
import pytest
from scipy import ndimage, special

from gpucoron.optics.detector_transform import DetectorTransform
from gpucoron.optics.instruments import INSTRUMENTS, MODES, Bar, choose_optics, load_aperture
from gpucoron.optics.masks import RAD, BarMask, RoundMask, bar_half_width, bar_opacity
from gpucoron.optics.telescope import (
    N_PUPIL,
    coronagraph_of,
    make_pupil,
    pupil_of,
    pupil_samples,
)

NARROW_OR_MEDIUM = ("M", "N")  # the wide filters are placed for their red end


def half_transmission(mask_radius, kernel):
    """Intensity behind a mask whose amplitude is one less `kernel`, at its nominal radius."""
    return (1 - kernel(mask_radius)) ** 2


@pytest.mark.parametrize(
    "bar", [Bar(0.3, 0.05, tapered=2.0, middle=0.2), Bar(0.35, -0.1, tapered=4.0, middle=-0.4)]
)
def test_bar_equals_propagation_through_a_fine_focal_plane(bar):
    """The mask multiplied onto the field of the focal plane, by direct sums on a finer grid."""
    pupil, wavelength, n_fine = make_pupil(0.0, 0.95, 60, along_m=0.3), 2.1e-6, 300
    ripple = np.sin(3 * pupil.axis) + np.cos(2 * pupil.axis - 1)[:, None]
    field = (pupil.aperture * np.exp(0.4j * ripple)).astype(np.complex64)
    angle = (np.arange(n_fine) - n_fine // 2) * wavelength / pupil.step / n_fine  # one period, rad
    forward = np.exp(-2j * np.pi / wavelength * np.outer(angle, pupil.axis))
    x, y = np.meshgrid(angle / RAD, angle / RAD)
    along = np.clip(x - bar.middle, -bar.tapered / 2, bar.tapered / 2)
    scaled = 1.7996025 * y / (bar.half_width + bar.taper * along)
    behind = (forward @ field @ forward.T) * (1 - special.spherical_jn(0, np.abs(scaled)) ** 2)
    direct = forward.conj().T @ behind @ forward.conj() / n_fine**2
    found = BarMask(bar, wavelength, pupil)(field)
    assert np.abs(direct - field).max() > 0.3  # the mask does something
    np.testing.assert_allclose(found, direct, atol=0.003)  # 0.0006 found


@pytest.mark.parametrize("wavelength", [1.9e-6, 4.4e-6])
def test_uniform_bar_convolves_the_pupil_with_a_triangle(wavelength):
    pupil = make_pupil(0.0, 0.95, 160, along_m=0.3)
    half_width = 4 * wavelength / 6.5 / RAD
    field = pupil.aperture.astype(np.complex64)
    reach = 1.7996025 * wavelength / (np.pi * half_width * RAD)
    assert reach == pytest.approx(0.143 * 6.5, rel=0.01)  # of the aperture, for 4 lambda/D
    lag = np.subtract.outer(pupil.axis, pupil.axis)
    triangle = np.clip(1 - np.abs(lag) / reach, 0, None) * pupil.step / reach
    found = BarMask(Bar(half_width, 0.0, length=np.inf), wavelength, pupil)(field)
    np.testing.assert_allclose(found, field - triangle @ field, atol=0.02)


def test_transmissions_are_one_half_at_the_nominal_radius():
    pupil = make_pupil(0.0, 0.6, 100)
    for radius in (0.4, 0.64, 0.81):
        mask = RoundMask(radius, 3e-6, pupil)
        kernel = np.fft.ifft2(mask.transfer).real.sum(axis=0)
        lag = np.fft.fftfreq(mask.n, 1 / mask.n) * pupil.step
        blocked = np.sum(kernel * np.cos(2 * np.pi * lag * radius * RAD / 3e-6))
        assert (1 - blocked) ** 2 == pytest.approx(0.5, abs=0.01)
    for name in ("SWB", "LWB"):
        bar = choose_optics("nircam", mask=name)[0].bar
        x = bar.middle + np.linspace(-9.9, 9.9, 23)
        half_width = bar_half_width(bar, x)
        np.testing.assert_allclose((1 - bar_opacity(bar, x, half_width)) ** 2, 0.5, atol=1e-6)
        assert half_width.max() / half_width.min() == pytest.approx(3, rel=1e-3)
        assert not bar_opacity(bar, bar.middle + 10.1, 0.0)


def test_sizes_of_nircams_masks_are_those_of_krist_2010():
    """Half widths are 6 lambda/D (round, design wavelength) and 4 lambda/D (bars, every filter).

    The star's place on a bar comes from the SIAF for each filter: that its half width is right says
    that position, direction and taper are.
    """
    design = {"210R": 2.1, "335R": 3.35, "430R": 4.3}
    for mode in MODES:
        if mode.mask in design:
            sizes = mode.mask_radius * RAD / (design[mode.mask] * 1e-6 / 6.5)
            assert sizes == pytest.approx(6, rel=0.015)
        elif mode.kind == "bar" and mode.metadata["channel"][0] == mode.mask[0]:
            for bandpass in mode.filters.values():
                radius = choose_optics("nircam", bandpass.name, mode.mask)[0].mask_radius
                size = radius * RAD / (bandpass.centre_um * 1e-6 / 6.5)
                narrow = bandpass.name.endswith(NARROW_OR_MEDIUM)
                assert size == pytest.approx(4, rel=0.035) if narrow else 4.1 < size < 4.5


def test_a_bar_hides_the_star_and_what_lies_along_it():
    instrument, bandpass = choose_optics("nircam", "F335M", "LWB")
    pupil = pupil_of(instrument, bandpass)
    pixels = np.arange(-60, 61)
    coronagraph = coronagraph_of(instrument, bandpass, pupil, (0.063, 0.063), pixels, pixels)
    flat = np.zeros_like(pupil.aperture)
    free = coronagraph.image(flat, (0, 0), masked=False)
    assert 0.8 < free.sum() < 1.001
    assert coronagraph.image(flat, (0, 0)).max() < 2e-3 * free.max()
    for offset, low, high in (((0, 25), 0.95, 1.05), ((0, -25), 0.95, 1.05), ((25, 0), 0, 0.05)):
        peak = coronagraph.image(flat, offset).max() / free.max()
        assert low <= peak <= high
    # at half a half-width the narrow side lets more through than the wide one, which is at lower x
    narrow, wide = (coronagraph.image(flat, (x, 5)).sum() for x in (30, -30))
    assert narrow > 1.2 * wide


def test_a_field_of_view_has_no_ghost_of_the_star():
    """An image from a sampled pupil repeats: with too few samples, the star again in the field."""
    instrument, bandpass = choose_optics("nircam", "F250M", "335R")
    columns = np.arange(230, 260)  # px; some 15 arcsec from the star
    brightest = []
    for pupil in (pupil_of(instrument, bandpass), pupil_of(instrument, bandpass, 2 * 260 * 0.063)):
        coronagraph = coronagraph_of(
            instrument, bandpass, pupil, (0.063, 0.063), columns, np.arange(-2, 3)
        )
        flat = np.zeros_like(pupil.aperture)
        brightest.append(coronagraph.image(flat, (0, 0), masked=False).max())
    assert brightest[0] > 0.01 > 1000 * brightest[1]


def test_fields_of_the_first_simulations_keep_their_sampling():
    for name, filters in (("nircam", ("F410M", "F444W")), ("miri-4qpm", ("F1065C",))):
        for bandpass in filters:
            chosen = choose_optics(name, bandpass)[1]
            shortest = (chosen.centre_um - chosen.width_um / 2) * 1e-6
            assert pupil_samples(shortest, 22.4 if name == "nircam" else 40.0) == N_PUPIL


@pytest.mark.parametrize("name", [mode.name for mode in MODES if mode.metadata["name"] == "MIRI"])
def test_pupil_and_phase_masks_of_miri_are_turned_with_the_telescope(name):
    """By the SIAF: V3, and V2 reversed, along the axes of the array; the mean of both angles."""
    instrument = INSTRUMENTS[name]
    for bandpass in instrument.filters.values():
        aperture = load_aperture(bandpass.aperture)
        ideal = np.array([[p[1], p[2]] for p in aperture.sci2idl])  # arcsec, by px along x and y
        tilt = np.deg2rad(aperture.v3_idl_yangle_deg)
        v3, against_v2 = (np.sin(tilt), np.cos(tilt)), (np.cos(tilt), -np.sin(tilt))
        (x, y), (u, v) = (np.linalg.solve(ideal, d) * aperture.scale for d in (v3, against_v2))
        angle = np.degrees(np.mean([np.arctan2(-x, y), np.arctan2(v, u)]))
        assert instrument.pupil_rotation_deg == pytest.approx(angle, abs=0.1)  # 0.05 found
        assert instrument.mask_rotation_deg in (0.0, instrument.pupil_rotation_deg)
    assert (instrument.kind == "4qpm") == bool(instrument.mask_rotation_deg)


@pytest.mark.parametrize("turn_deg", [0.0, -4.72, 17.0])
def test_a_turned_grid_is_transformed_as_by_a_direct_sum(turn_deg):
    rng, wavelength = np.random.default_rng(3), 11.3e-6
    pupil = make_pupil(0.0, 0.2, 100, turn_deg=turn_deg)
    box = slice(8, 93), slice(5, 96)
    phase = ndimage.gaussian_filter(20 * rng.standard_normal((2, 85, 91)), (0, 4, 4))
    field = (pupil.stop[box] * np.exp(1j * phase)).astype(np.complex64)
    columns, rows = 9.0 * rng.uniform(-1, 1, (2, 7))
    found = DetectorTransform(pupil, box, wavelength, columns, rows, 2.0)(field)
    y, x = np.meshgrid(pupil.axis[box[0]], pupil.axis[box[1]], indexing="ij")
    turn = np.deg2rad(turn_deg)
    along_x, along_y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    path = along_x * columns[:, None, None] + along_y * rows[:, None, None, None]  # row, column
    waves = np.exp(-2j * np.pi * path * RAD / wavelength)
    expected = 2 * np.einsum("kyx,ijyx->kij", field, waves)
    scale = np.abs(field).sum()
    np.testing.assert_allclose(found, expected, atol=5e-5 * scale)
    one = DetectorTransform(pupil, box, wavelength, columns, rows, 2.0)(field[1])
    np.testing.assert_allclose(one, found[1], atol=1e-6 * scale)
