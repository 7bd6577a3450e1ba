"""A model of a disk that is left out of the science images while their PSF is fitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpucoron.analysis.sky_grid import SkyGrid
from gpucoron.backend import cuda
from gpucoron.errors import ExposureError, InputError, ParameterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpucoron.analysis.forward import OffAxisImages
    from gpucoron.core.parameters import Parameters
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.io.exposures import Exposure

__all__ = ["DiskModel"]


class DiskModel:
    """What the science exposures see of a model of the sky.

    Parameters
    ----------
    parameters : Parameters
        ``klip.subtract_model`` has the file.
    science : sequence of Exposure
        All of the product.
    psf : OffAxisImages
        By which the model is convolved.
    checksums : bool

    Raises
    ------
    InputError, ExposureError
        The file cannot be used, or it is not known where the star or the mask is.

    Notes
    -----
    The model is about the star as the headers (or ``align_refs.star``) have it, which is where it
    is before anything is measured.
    """

    def __init__(
        self,
        parameters: Parameters,
        science: Sequence[Exposure],
        psf: OffAxisImages,
        checksums: bool = True,
    ):
        from gpucoron.io.sky_model import read_sky_model
        from gpucoron.optics.field_psf import FieldPSF

        path = parameters.klip.subtract_model
        file = read_sky_model(path, checksums)
        self._grid = SkyGrid(file.image.shape, file.scale, file.star, file.angle_deg)
        self._image = file.image
        self._stars = {e.root: _star(parameters, science, e) for e in science}
        self._psf = FieldPSF(psf)
        self._planes: dict[str, np.ndarray] = {}
        for exposure in science:
            if not self._on_detector(exposure).any():
                raise InputError(
                    f"{path}: nothing of the model is in {exposure.path.name}, expected a source "
                    "about the star"
                )

    @classmethod
    def of(
        cls,
        parameters: Parameters,
        science: Sequence[Exposure],
        given: OffAxisImages | None,
        checksums: bool = True,
    ) -> DiskModel | None:
        """Return the model of a product; None without a file.

        Raises
        ------
        ParameterError
            Nothing is subtracted by KLIP, or the preset does not have it.
        """
        from gpucoron.pipeline.off_axis_psf import optics_psf

        path = parameters.klip.subtract_model
        if not path:
            return None
        if parameters.like_jwst or parameters.klip.skip:
            why = "the preset jwst" if parameters.like_jwst else "klip.skip"
            raise ParameterError(
                f"klip.subtract_model is {path!r} with {why}, expected one of them"
            )
        psf = given or optics_psf(science[0])
        if psf is None:
            raise InputError(
                f"{path}: there is no model of the PSF of {science[0].path.name}, expected "
                "--psf FILE, to convolve it by"
            )
        return cls(parameters, science, psf, checksums)

    def taken_from(self, stack: IntegrationStack, exposure: Exposure) -> IntegrationStack:
        """Return the integrations of an exposure without the model."""
        return self._changed(stack, exposure, -1.0)

    def put_back(self, stack: IntegrationStack, exposure: Exposure) -> IntegrationStack:
        """Return integrations with the model."""
        return self._changed(stack, exposure, 1.0)

    def _changed(self, stack, exposure, sign):
        xp = cuda.array_namespace(stack.data)
        plane = xp.asarray((sign * self.seen_by(exposure)).astype(np.float32))
        return stack.replace(data=stack.data + plane)

    def seen_by(self, exposure: Exposure) -> np.ndarray:
        """Return what an exposure sees of the model: (ny, nx) float64, MJy/sr."""
        from gpucoron.analysis.extended import Convolution

        if exposure.root not in self._planes:
            convolution = Convolution(self._psf, exposure.shape[1:], _mask(exposure, self._stars))
            self._planes[exposure.root] = convolution(self._on_detector(exposure))
        return self._planes[exposure.root]

    def _on_detector(self, exposure: Exposure) -> np.ndarray:
        """Return the model in the pixels of an exposure, not convolved."""
        from gpucoron.io.star import offsets_from

        (east, north), pixel = offsets_from(exposure, self._stars[exposure.root])
        gradients = [np.gradient(plane) for plane in (east, north)]

        def to_sky(dy, dx):
            """Offsets of places in the pixels."""
            moved = [
                plane + dy * by_y + dx * by_x
                for plane, (by_y, by_x) in zip((east, north), gradients, strict=True)
            ]
            return np.stack(moved, axis=-1).reshape(-1, 2)

        matrix = self._grid.sampling(pixel, to_sky)
        return (matrix @ self._image.ravel()).reshape(exposure.shape[1:])


def _star(parameters, science, exposure) -> tuple[float, float]:
    from gpucoron.pipeline.expected_star import star_before_alignment

    star = star_before_alignment(parameters, science, exposure)
    if star is None:
        raise ExposureError(
            f"{exposure.path.name}: klip.subtract_model is about the star, whose position the "
            "headers do not have; expected STARCENX, STARCENY or CRPIX1, CRPIX2 in SCI, or --star"
        )
    return star


def _mask(exposure: Exposure, stars) -> tuple[float, float]:
    """Return x, y of the mask by the optics, pixels from 0; the star where it is not modelled."""
    from gpucoron.optics.instruments import optics_of

    known = optics_of(exposure.meta)
    x, y = stars[exposure.root]
    return (x - 1, y - 1) if known is None else known.mask_centre
