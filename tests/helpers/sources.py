"""Point sources whose image in a combined image is known exactly, for tests of detection."""

import numpy as np


class GaussianPatches:
    """A Gaussian of peak 1, with a ring of side lobes of some height: a PatchModel."""

    linear = True

    def __init__(self, fwhm, lobes=0.0, radius=5.0):
        self.fwhm, self.lobes, self.radius = fwhm, lobes, radius

    def patches(self, places, half):
        places = np.asarray(places, float)
        steps = np.arange(-half, half + 1)
        x, y = ((np.rint(p)[:, None] + steps) - p[:, None] for p in places.T)
        square = y[:, :, None] ** 2 + x[:, None] ** 2
        core = np.exp(-4 * np.log(2) * square / self.fwhm**2)
        angle = np.arctan2(y[:, :, None], x[:, None])
        ring = np.exp(-4 * np.log(2) * (np.sqrt(square) - self.radius) ** 2 / self.fwhm**2)
        return core + self.lobes * ring * np.cos(3 * angle) ** 2

    def rough(self):
        return self

    def of_flux(self, flux):
        return self

    def plane(self, shape, x, y, flux):
        """The image of a source in a plane."""
        half = max(shape)
        (patch,) = self.patches([(x, y)], half)
        rows, columns = half - round(y), half - round(x)
        return flux * patch[rows : rows + shape[0], columns : columns + shape[1]]
