"""The test of suspected outliers against their neighbours, for the CPU, compiled by numba."""

import numpy as np
from numba import njit

from gpucoron.backend.parallel import over_rows
from gpucoron.ops.cpu.kriging import _solve
from gpucoron.ops.kriging_tables import NEAR, finest_correlation, neighbours
from gpucoron.ops.outlier_suspects import GROWS

WINDOW = 16  # integrations, nearest in time, that a suspect is compared with
MIDDLE = 4  # at most this many of them, of middling value, are averaged where nothing changes
TEMPLATES = 4  # and this many (half of n - 1) describe how the image changes elsewhere
NOISE_FLOOR = 1e-4  # as in gpucoron.ops.kriging
MOSTLY_NOISE = 0.3
RIDGE = 1e-6
FEWEST = 3  # neighbours; a fit needs that many for each of its coefficients
MODEL_ERROR = 0.2  # share of what kriging predicts: its correlations are only nearly right
DARK = 0.6  # of a deviation downwards counts where the image changes: hits are bright
PREDICTED = 3.0  # standard deviations within which neighbours predict a pixel


def deviations(images, places, outliers, scores, stale, quick, cutoff):
    """Compute how far suspects deviate from their prediction, in standard deviations.

    `images` is (data, err, usable, suspects, gradients), `places` three arrays (integration, y, x),
    `outliers` those known so far, which predict nothing; images have no structure beyond `cutoff`,
    cycles per pixel. `scores` are replaced where `stale`; with `quick` by 0 where neighbours hold
    more than noise.
    """
    offsets, squares = neighbours(NEAR)
    table = finest_correlation(cutoff)
    tables = offsets, table[squares], table[np.sum(offsets**2, axis=1)]
    arrays = [_read_only(a) for a in (*images, *places, outliers, *tables, stale)]
    over_rows(_deviations, len(scores), *arrays, quick, scores)


def _read_only(array):
    """Contiguous and read-only, whatever it was: the loop is compiled once for each dtype."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


@njit(cache=True, nogil=True)
def _deviations(
    first,
    stop,
    data,
    err,
    usable,
    suspects,
    gradients,
    integration,
    row,
    column,
    outliers,
    offsets,
    between,
    to_centre,
    stale,
    quick,
    scores,
):
    size, width = offsets.shape[0], 2 + TEMPLATES
    images = data, err, usable, suspects, outliers, gradients
    correlations = offsets, between, to_centre
    space = (
        np.empty(size, np.int64),
        np.empty(size),
        np.empty((size, width)),
        np.empty((size, size)),
        np.empty(size),
        np.empty((2, width, width)),
        np.empty((4, width)),
    )
    chosen = np.empty(WINDOW, np.int64)
    for k in range(first, stop):
        if stale[k]:
            where = integration[k], row[k], column[k]
            scores[k] = _score(images, where, correlations, space, chosen, quick)


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _score(images, where, correlations, space, chosen, quick):
    """Deviation of one suspect; 0 where another integration is the outlier, or nothing is known."""
    data, suspects = images[0], images[3]
    i, y, x = where
    n = data.shape[0]
    middle, templates = _choose(images, where, MIDDLE, 0, chosen)
    if n > 1 and middle == 0:  # nobody to compare with: the verdict stays
        return np.inf if images[4][i, y, x] and not quick else 0.0
    left, own, spread, quiet = _predict(
        images, where, chosen, middle, 0, 0, 0, correlations, space, True
    )
    fitted = 0
    if quick and not quiet:
        return 0.0
    if not quiet:
        fitted = 2 if n > 1 else 0
        templates = max(0, min(TEMPLATES, (n - 1) // 2))
        middle, templates = _choose(images, where, 1, templates, chosen)
        left, own, spread, quiet = _predict(
            images, where, chosen, middle, templates, fitted, 0, correlations, space, False
        )
    score = _in_sigmas(left, own, spread, quiet, n)
    beside = 0 if quick else _suspects_beside(suspects[i], y, x)
    if beside and (n > 1 or beside < GROWS):
        apart, own, spread, quiet = _predict(
            images, where, chosen, middle, templates, fitted, 1, correlations, space, False
        )
        other = _in_sigmas(apart, own, spread, quiet, n)
        if abs(other) > abs(score):
            score = other
    if n == 2:
        hit = i if score > 0.0 else 1 - i
        if _lower_is_hit(images, 1 - hit, hit, y, x, chosen, correlations, space):
            hit = 1 - hit
        return abs(score) if hit == i else 0.0
    return abs(score) if n > 2 else max(score, 0.0)


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _in_sigmas(left, own, spread, quiet, n):
    """Deviation in sigma; downwards less where the image changes, as hits are bright."""
    sigmas = left / np.sqrt(own + spread * spread)
    return DARK * sigmas if n > 2 and sigmas < 0.0 and not quiet else sigmas


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _lower_is_hit(images, low, high, y, x, chosen, correlations, space):
    """Is the lower of two integrations the outlier, by the neighbours in both?"""
    left, own, spread, _ = _predict(
        images, (high, y, x), chosen, 0, 0, 0, 0, correlations, space, False
    )
    if not abs(left) <= PREDICTED * np.sqrt(own + spread * spread):
        return False
    left, own, spread, _ = _predict(
        images, (low, y, x), chosen, 0, 0, 0, 0, correlations, space, False
    )
    return left < -2.0 * PREDICTED * np.sqrt(own + spread * spread)


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _suspects_beside(suspects, y, x):
    """How many of the eight neighbours are suspects?"""
    ny, nx = suspects.shape
    count = 0
    for v in range(max(y - 1, 0), min(y + 2, ny)):
        for u in range(max(x - 1, 0), min(x + 2, nx)):
            count += suspects[v, u] and (v != y or u != x)
    return count


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _choose(images, where, most, others, chosen):
    """Choose integrations to compare with: up to `most` of middling value, then up to `others`.

    They are written into `chosen`; returns how many of both kinds there are.
    """
    data, _, usable, _, outliers, _ = images
    i, y, x = where
    n = data.shape[0]
    start = max(0, min(i - WINDOW // 2, n - WINDOW))
    stop = min(start + WINDOW, n)
    count = 0
    for j in range(start, stop):
        count += j == i or (usable[j, y, x] and (n == 2 or not outliers[j, y, x]))
    keep = count if count <= 2 else min(most, count - 2)
    low = (count - keep) // 2
    if keep == 1 and _rank(images, where, i, start, stop) == low:
        low += 1
    middle = 0
    for j in range(start, stop):
        if j != i and usable[j, y, x] and (n == 2 or not outliers[j, y, x]):
            rank = _rank(images, where, j, start, stop)
            if low <= rank < low + keep:
                chosen[middle] = j
                middle += 1
    total = middle
    for distance in range(1, WINDOW):
        for j in (i - distance, i + distance):
            if start <= j < stop and usable[j, y, x] and not outliers[j, y, x]:
                known = total == middle + others
                for k in range(middle):
                    known = known or chosen[k] == j
                if not known:
                    chosen[total] = j
                    total += 1
    return middle, total - middle


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _rank(images, where, j, start, stop):
    """How many integrations have a smaller value than j, of those that may be compared."""
    data, _, usable, _, outliers, _ = images
    i, y, x = where
    rank, value = 0, data[j, y, x]
    for k in range(start, stop):
        if k == i or (usable[k, y, x] and (len(data) == 2 or not outliers[k, y, x])):
            other = data[k, y, x]
            rank += other < value or (other == value and k < j)
    return rank


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _read(images, i, y, x, chosen, middle, templates, fitted, row):
    """Difference from the mean of the middling ones, and its variance; templates into `row`."""
    data, err, gradients = images[0], images[1], images[5]
    base, noise = 0.0, 0.0
    for k in range(middle):
        e = np.float64(err[chosen[k], y, x])
        base += data[chosen[k], y, x]
        noise += e * e
    if middle:
        base /= middle
        noise /= middle * middle
    for k in range(fitted):
        row[k] = gradients[k, y, x]
    for k in range(templates):
        row[fitted + k] = data[chosen[middle + k], y, x] - base
    e = np.float64(err[i, y, x])
    return data[i, y, x] - base, e * e, noise


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _collect(images, where, chosen, counts, gap, offsets, space):
    """Collect the neighbours that predict a suspect, into `space`: which, values, and templates.

    Neighbours within `gap` are passed over where they are suspects. Returns how many there are,
    their mean, which is taken out of the values, and the mean variance of their noise.
    """
    usable, suspects, outliers = images[2], images[3], images[4]
    which, values, rows = space[0], space[1], space[2]
    middle, templates, fitted = counts
    i, y, x = where
    ny, nx = usable.shape[1:]
    n, mean, noise = 0, 0.0, 0.0
    for m in range(offsets.shape[0]):
        v, u = y + offsets[m, 0], x + offsets[m, 1]
        if not (0 <= v < ny and 0 <= u < nx and usable[i, v, u]) or outliers[i, v, u]:
            continue
        if abs(v - y) <= gap and abs(u - x) <= gap and suspects[i, v, u]:
            continue
        good = True
        for k in range(middle + templates):
            good = good and usable[chosen[k], v, u] and not outliers[chosen[k], v, u]
        if not good:
            continue
        value, a, b = _read(images, i, v, u, chosen, middle, templates, fitted, rows[n])
        which[n], values[n] = m, value
        mean += value
        noise += a + b
        n += 1
    if n == 0:
        return 0, 0.0, 0.0
    mean /= n
    for a in range(n):
        values[a] -= mean
    return n, mean, noise / n


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _predict(images, where, chosen, middle, templates, fitted, gap, correlations, space, if_quiet):
    """Predict a suspect's difference from other integrations by its neighbours.

    Neighbours within `gap` are passed over where they are suspects. Returns what the prediction
    leaves, the variance of the pixel's noise, the standard deviation of the prediction, and
    whether the neighbours hold nothing but noise; with `if_quiet` no more is computed than that.
    """
    values, here = space[1], space[6][0]
    i, y, x = where
    counts = middle, templates, fitted
    n, mean, noise = _collect(images, where, chosen, counts, gap, correlations[0], space)
    left, own, base = _read(images, i, y, x, chosen, middle, templates, fitted, here)
    total = own + base
    if n < FEWEST:
        return (0.0 if gap or middle == 0 else left), total, 0.0, True
    signal = _power(values, n) / n - noise
    left -= mean
    if signal <= MOSTLY_NOISE * noise:
        return left, total, np.sqrt(max(signal, 0.0)), True
    if if_quiet:
        return left, total, 0.0, False
    count = fitted + templates
    known = False  # by the fit alone
    if count and n >= FEWEST * (count + 1):
        fit, leverage, share, extra = _detrend(images, where, chosen, middle, templates, n, space)
        total = own + (1 - share) * (1 - share) * base + extra
        noise *= total / (own + base)
        mean = 0.0
        for a in range(n):
            mean += values[a] / n
        for a in range(n):
            values[a] -= mean
        left -= fit + mean
        signal = _power(values, n) / (n - count - 1) - noise
        total += min(leverage, 1.0) * noise
        known = signal <= MOSTLY_NOISE * noise
    if known:
        return left, total, np.sqrt(max(signal, 0.0)), False
    value, unknown, misfit = _krige(n, noise / signal, correlations, space)
    if len(images[0]) == 1:  # how well the model fits the neighbours tells how good it is
        total += (0.5 * MODEL_ERROR * value) ** 2
        unknown *= max(misfit / signal, 1.0)
    elif middle:  # not where it only decides which of two is hit
        total += (MODEL_ERROR * value) ** 2
    return left - value, total, np.sqrt(max(signal * unknown, 0.0)), False


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _power(values, n):
    power = 0.0
    for a in range(n):
        power += values[a] * values[a]
    return power


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _krige(n, noise, correlations, space):
    """Krige a pixel from `n` values without a mean; `noise` is a share of the signal's variance.

    Returns the value, the share of the signal's variance that stays unknown, and the mean square of
    the values in units of what the correlations and the noise let expect, times that variance.
    """
    _, between, to_centre = correlations
    which, values, _, matrix, weights = space[:5]
    for a in range(n):
        for b in range(a + 1):
            matrix[a, b] = between[which[a], which[b]]
        matrix[a, a] += max(noise, NOISE_FLOOR)
        weights[a] = to_centre[which[a]]
    value, unknown, misfit = 0.0, 1.0, 0.0
    if _solve(matrix, weights, n):
        for a in range(n):
            value += weights[a] * values[a]
            unknown -= weights[a] * to_centre[which[a]]
        for a in range(n):  # weights become those values, decorrelated
            weights[a] = values[a]
            for b in range(a):
                weights[a] -= matrix[a, b] * weights[b]
            weights[a] /= matrix[a, a]
            misfit += weights[a] * weights[a] / n
    return value, unknown, misfit


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _detrend(images, where, chosen, middle, templates, n, space):
    """Fit the neighbours' values by the templates, and take the fit out of them.

    Returns the fit at the pixel, its leverage, the sum of the coefficients of the other
    integrations, and the variance that these bring in.
    """
    err = images[1]
    _, values, rows, _, _, normal, vectors = space
    here, right, lever, scales = vectors
    _, y, x = where
    count = templates + 2
    for k in range(count):
        mean, scale = 0.0, 0.0
        for a in range(n):
            mean += rows[a, k] / n
        for a in range(n):
            rows[a, k] -= mean
            scale += rows[a, k] * rows[a, k]
        scales[k] = np.sqrt(scale) if scale > 0.0 else 1.0
        here[k] = (here[k] - mean) / scales[k]
        lever[k] = here[k]
        right[k] = 0.0
        for a in range(n):
            rows[a, k] /= scales[k]
            right[k] += rows[a, k] * values[a]
        for m in range(k + 1):
            normal[0, k, m] = RIDGE if m == k else 0.0
            for a in range(n):
                normal[0, k, m] += rows[a, k] * rows[a, m]
            normal[1, k, m] = normal[0, k, m]
    if not (_solve(normal[0], right, count) and _solve(normal[1], lever, count)):
        return 0.0, 0.0, 0.0, 0.0
    fit, leverage, share, extra = 0.0, 0.0, 0.0, 0.0
    for k in range(count):
        fit += right[k] * here[k]
        leverage += lever[k] * here[k]
        for a in range(n):
            values[a] -= right[k] * rows[a, k]
        if k >= 2:
            c = right[k] / scales[k]
            e = np.float64(err[chosen[middle + k - 2], y, x])
            share += c
            extra += c * c * e * e
    return fit, leverage, share, extra
