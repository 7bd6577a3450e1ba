"""Errors and weights of the pixels of a product: what is out of proportion is a warning."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.core.stack import LEAST_VARIANCE, VARIANCES, IntegrationStack
from gpucoron.errors import plural
from gpucoron.ops.dq import DO_NOT_USE, NON_SCIENCE

if TYPE_CHECKING:
    from gpucoron.core.parameters import Parameters
    from gpucoron.io.exposures import Exposure
    from gpucoron.steps.outlier_detection import OutlierResult

log = logging.getLogger("gpucoron")

MOST_ODD = 0.01  # share of an integration's good pixels; real and simulated sets reach 0.0002
MOST_OUTLIERS = 0.05  # share of an exposure's pixels; real and simulated sets reach 0.007
MOST_UNLIKE = 1000.0  # factor between the weights of exposures
MOST_PRECISE = 1e-4  # of a read-noise variance's median; on real and simulated sets 0.25
STRIDE = 4  # px between those that a read-noise variance's median is taken of


class Weights:
    """The weights of a product's science exposures, and warnings about odd errors and weights."""

    def __init__(self, parameters: Parameters):
        self._parameters = parameters
        self._by_time = parameters.resample.weight_type == "exptime"
        self._typical: dict[str, float | None] = {}  # weight of each exposure, by its file's name

    def look_at(self, exposure: Exposure, stack: IntegrationStack) -> None:
        """Look at an exposure's pixels, which are on the host, and warn of what is odd."""
        good = np.isfinite(stack.data) & ((stack.dq & np.uint32(DO_NOT_USE | NON_SCIENCE)) == 0)
        name, known = exposure.path.name, np.maximum(good.sum(axis=(1, 2)), 1)

        def warn(odd: np.ndarray, what: str, consequence: str) -> None:
            if not odd.any():
                return
            counts = (good & odd).sum(axis=(1, 2))
            if (counts > MOST_ODD * known).any():
                pixels = f"{counts.sum()} of {plural(int(good.sum()), 'good pixel')}"
                log.warning("%s: %s in %s; %s", name, what, pixels, consequence)

        if "ERR" not in exposure.unused:
            flagged = self._parameters.like_jwst
            consequence = "any that differs from the median is" if flagged else "none of them is"
            none = ~(stack.err > 0) & ~np.isnan(stack.err)
            warn(none, "ERR is 0 or negative", f"{consequence} flagged as an outlier")
            warn(stack.err == np.inf, "ERR is infinite", "none of them is flagged as an outlier")
        used = {part.upper(): getattr(stack, part) for part in ("err", *VARIANCES)}
        nan = {
            k: np.isnan(v) for k, v in used.items() if v is not None and k not in exposure.unused
        }
        nan = {k: where for k, where in nan.items() if (where & good).any()}
        if nan:
            text = f"{', '.join(nan)} {'are' if len(nan) > 1 else 'is'} NaN"
            warn(np.any(list(nan.values()), axis=0), text, "they are not used")
        science = exposure.exptype == "science"
        for part in VARIANCES:
            values = getattr(stack, part)
            propagated = part in ("var_poisson", "var_flat") or self._by_time
            if values is not None and science and propagated:
                unknown = (values < 0) | np.isinf(values)
                odd = f"{part.upper()} is negative or infinite"
                warn(unknown, odd, "ERR counts in i2d instead")
        if science and self._by_time:
            self._typical[name] = exposure.meta.weighing_time
        elif science:
            self._typical[name] = _look_at_read_noise(stack.var_rnoise, good, warn)

    @property
    def without_read_noise(self) -> float:
        """The weight of exposures without VAR_RNOISE: that of the others, 1 where all lack it.

        The preset gives 1, as jwst does.
        """
        known = [weight for weight in self._typical.values() if weight is not None]
        return float(np.median(known)) if known and not self._parameters.like_jwst else 1.0

    def compare(self) -> None:
        """Warn of exposures whose weights are far from those of the others."""
        missing = self.without_read_noise
        weights = {k: missing if w is None else w for k, w in self._typical.items()}
        for name, weight in weights.items():
            others = [w for other, w in weights.items() if other != name]
            if not others:
                return
            ratio = weight / float(np.median(others))
            if not 1 / MOST_UNLIKE <= ratio <= MOST_UNLIKE:
                log.warning(
                    "%s: its pixels have %.2g times the weight of the other exposures', so that "
                    "i2d has hardly anything of %s; look at %s",
                    name,
                    ratio,
                    "these" if ratio > 1 else "it",
                    "TMEASURE, XPOSURE" if self._by_time else "VAR_RNOISE",
                )


def _look_at_read_noise(
    variance: np.ndarray | None, good: np.ndarray, warn: Callable[..., None]
) -> float | None:
    """Warn of pixels without a weight or with too much; return their typical weight."""
    if variance is None:
        return None
    weighs = good & (variance >= LEAST_VARIANCE) & np.isfinite(variance)
    lost = "VAR_RNOISE is not above 0, or infinite,"
    warn(~weighs & ~np.isnan(variance), lost, "their weight is 0")
    if not weighs.any():
        return None
    sample = np.s_[:, ::STRIDE, ::STRIDE]
    some = variance[sample][weighs[sample]]
    middle = float(np.median(some if some.size else variance[weighs]))
    precise = f"VAR_RNOISE is below {MOST_PRECISE:g} of its median"
    warn(weighs & (variance < MOST_PRECISE * middle), precise, "they rule i2d")
    return 1.0 / middle


def warn_of_outliers(name: str, found: OutlierResult) -> None:
    """Warn where so many pixels of an exposure are outliers that its ERR must be too small."""
    flagged, size = int(found.flagged.sum()), int(np.prod(found.stack.shape))
    if flagged > MOST_OUTLIERS * size:
        log.warning(
            "%s: outlier_detection flagged %d of %d pixels (%.0f %%), which are not used; ERR may "
            "be too small, or the integrations differ",
            name,
            flagged,
            size,
            100 * flagged / size,
        )
