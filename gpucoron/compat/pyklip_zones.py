"""Zones and references as pyKLIP chooses them: annuli, subsections, movement, correlation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpucoron.errors import ParameterError

__all__ = ["Zones", "allowed_references", "make_zones"]

_LEAST_PIXELS = 5  # finite ones that pyKLIP wants of a reference from the sequence itself


@dataclass(frozen=True)
class Zones:
    """Annuli and subsections about the star.

    Attributes
    ----------
    pixels : tuple of (npix,) int64 arrays
        Of each zone that has two pixels or more: places in the flattened image.
    labels : (ny, nx) int64
        The zone of each pixel, -1 in none.
    radii : (nzones,) float64
        Mean radius of each, px.
    width : float
        Of the narrowest annulus, px.
    outer : float
        Outer radius of the last annulus, px.
    """

    pixels: tuple[np.ndarray, ...]
    labels: np.ndarray
    radii: np.ndarray
    width: float
    outer: float


def make_zones(
    images: np.ndarray,
    first_center: np.ndarray,
    center: np.ndarray,
    inner: float,
    outer: float | None,
    annuli: int,
    subsections: int,
    spacing: str,
) -> Zones:
    """Divide the image into annuli and subsections as `pyklip.parallelized.klip_parallelized`.

    Parameters
    ----------
    images : (n, ny, nx) floating
        Before they are aligned. Without `outer` the first one's NaN tell how far annuli go.
    first_center : (2,)
        (x, y) of the first image before it is aligned, pixels from 0.
    center : (2,)
        (x, y) about which the zones are, pixels from 0.
    inner, outer : float or None, px
        IWA and OWA. Without `outer` the last annulus reaches beyond the corners.
    annuli, subsections : int
    spacing : {"constant", "log", "linear"}

    Returns
    -------
    Zones

    Raises
    ------
    ParameterError
        An annulus is narrower than a pixel.
    """
    ny, nx = images.shape[1:]
    y, x = np.indices((ny, nx), dtype=np.float64)
    bounds = _annuli_bounds(
        annuli, inner, _reach(images[0], first_center) if outer is None else outer, spacing
    )
    if outer is None:
        bounds[-1] = (bounds[-1][0], float(ny))
    radius = np.sqrt((x - center[0]) ** 2 + (y - center[1]) ** 2).ravel()
    # from -pi at the positive x axis on, as pyKLIP counts
    angle = (np.arctan2(y - center[1], x - center[0]) % (2 * np.pi) - np.pi).ravel()
    step = 2 * np.pi / subsections
    sectors = [(step * k - np.pi, step * (k + 1) - np.pi) for k in range(subsections)]
    sectors[-1] = (sectors[-1][0], np.pi)
    pixels: list[np.ndarray] = []
    radii, labels = [], np.full(ny * nx, -1)
    for start, stop in bounds:
        ring = (radius >= start) & (radius < stop)
        for first, last in sectors:
            zone = np.flatnonzero(ring & (angle >= first) & (angle < last))
            if len(zone) > 1:
                labels[zone] = len(pixels)
                pixels.append(zone)
                radii.append((start + stop) / 2)
    width = float(min(stop - start for start, stop in bounds))
    if not pixels:
        raise ParameterError(f"no pixel is between {inner:g} and {bounds[-1][1]:g} px of the star")
    return Zones(tuple(pixels), labels.reshape(ny, nx), np.array(radii), width, bounds[-1][1])


def _reach(image, center):
    """Return where the annuli end if there is no OWA: at the image's corner, or its NaN."""
    y, x = np.indices(image.shape, dtype=np.float64)
    squares = (x - center[0]) ** 2 + (y - center[1]) ** 2
    missing = np.isnan(image)
    return float(np.sqrt(np.percentile(squares[missing], 1) if missing.any() else squares.max()))


def _annuli_bounds(annuli, inner, outer, spacing):
    if spacing == "constant":
        edges = inner + (outer - inner) / annuli * np.arange(annuli + 1)
    elif spacing == "log":
        widths = np.log(np.arange(annuli) + 1) + 1
        edges = inner + (outer - inner) / widths.sum() * np.concatenate([[0], widths.cumsum()])
    else:  # linear, where pyKLIP's annuli have one width and cover the inner part only
        edges = inner + (outer - inner) / np.arange(1, annuli + 1).sum() * np.arange(annuli + 1)
    narrowest = np.diff(edges).min()
    if narrowest < 1:
        raise ParameterError(
            f"annuli={annuli} between {inner:g} and {outer:g} px leaves an annulus of "
            f"{narrowest:.2f} px; expected 1 px or more, so fewer annuli"
        )
    return [(float(a), float(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]


@dataclass(frozen=True)
class Library:
    """The images of a `pyklip.rdi.PSFLibrary` that a sequence may use.

    Attributes
    ----------
    images : (nlib, ny, nx) float64
        Aligned to where the sequence is aligned to.
    correlation : (n, nlib) float64
        With the images of the sequence, over the whole image.
    """

    images: np.ndarray
    correlation: np.ndarray


def allowed_references(
    zones: Zones,
    images: np.ndarray,
    angles: np.ndarray,
    library: Library | None,
    *,
    adi: bool,
    movement: float,
    minrot: float,
    most: int,
    smooth: bool,
) -> np.ndarray:
    """Choose the references of every image in every zone as pyKLIP does.

    Parameters
    ----------
    zones : Zones
    images : (n, ny, nx) float64
        The sequence, aligned.
    angles : (n,) float64, degrees
        Position angles.
    library : Library, optional
    adi : bool
        Whether images of the sequence are references.
    movement : float, px
        Least distance that a source moves between image and reference, at the zone's mean radius.
    minrot : float, degrees
        Least rotation between image and reference.
    most : int
        Where there are more references, those that correlate most with the image in the zone.
    smooth : bool
        Correlate images smoothed with a Gaussian of sigma 1 px (those of the sequence).

    Returns
    -------
    (nzones, n, n + nlib) bool
        The images of the sequence first, then those of the library.

    Notes
    -----
    Wang et al. (2015), ASCL 1506.001: ``_klip_section_multifile_perfile`` of pyKLIP 2.8 to 2.10.
    Correlations that are not known, because an image has NaN in the zone, count as pyKLIP's do: 0
    between images of the sequence, more than all others for images of the library.
    """
    n, n_library = len(images), 0 if library is None else len(library.images)
    allowed = np.zeros((len(zones.pixels), n, n + n_library), dtype=bool)
    turned = np.radians(angles[:, None] - angles)
    rotated = np.abs(angles[:, None] - angles) >= minrot if minrot > 0 else True
    for zone, (pixels, radius) in enumerate(zip(zones.pixels, zones.radii, strict=True)):
        moves = radius * np.hypot(np.cos(turned) - 1, np.sin(turned))
        own = (moves >= movement) & rotated & adi & (len(pixels) >= _LEAST_PIXELS)
        allowed[zone, :, :n], allowed[zone, :, n:] = own, True
        crowded = np.flatnonzero(allowed[zone].sum(axis=1) > most)
        if not len(crowded):
            continue
        correlation = _correlation(images, pixels, smooth) if adi else np.zeros((n, n))
        for k in crowded:
            own_places = np.flatnonzero(own[k])
            values, places = correlation[k, own_places], own_places
            if library is not None:
                best = np.argsort(library.correlation[k])[-min(most, n_library) :]
                values = np.append(values, _correlation_with(images[k], library, best, pixels))
                places = np.append(places, n + best)
            allowed[zone, k] = False
            allowed[zone, k, places[np.argsort(values)[-most:]]] = True
    return allowed


def _correlation(images, pixels, smooth):
    """Correlate images in a zone with each other; (n, n), 0 where it is not known."""
    from scipy.ndimage import gaussian_filter

    if smooth:
        y, x = np.unravel_index(pixels, images.shape[1:])
        box = slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1)
        places = y - box[0].start, x - box[1].start
        rows = np.array([gaussian_filter(image[box], 1)[places] for image in images])
    else:
        rows = images.reshape(len(images), -1)[:, pixels]
        rows = rows - np.nanmean(rows, axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.atleast_2d(np.corrcoef(np.nan_to_num(rows, nan=0.0)))
    return np.nan_to_num(correlation, nan=0.0)


def _correlation_with(image, library, best, pixels):
    """Correlate an image with images of the library in a zone; NaN where either has NaN."""
    target = image.ravel()[pixels]
    others = library.images.reshape(len(library.images), -1)[best][:, pixels]
    target, others = target - target.mean(), others - others.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        # divided by the number of pixels, which correlations in the sequence are not: these are
        # preferred to the library. So does pyKLIP.
        covariance = others @ target / (len(pixels) - 1)
        return covariance / np.sqrt((others**2).sum(axis=1)) / np.sqrt((target**2).sum())
