"""The test of suspected outliers against their neighbours, for the CPU, compiled by numba."""

import numpy as np
from numba import njit

from gpucoron.backend.parallel import over_rows
from gpucoron.ops.kriging_tables import NEAR, finest_correlation, neighbours

WINDOW = 16  # integrations, nearest in time, that a suspect is compared with
MIDDLE = 4  # at most this many of them, of middling value, are averaged
NOISE_FLOOR = 1e-4  # as in gpucoron.ops.kriging
MOSTLY_NOISE = 0.3
FEWEST = 3  # neighbours
BESIDE = 12  # nearest neighbours, of which those that stand out do not predict a pixel,
STANDS_OUT = 2.5  # standard deviations by which these do
MODEL_ERROR = 0.05  # share of what kriging predicts: its correlations are only nearly right
ALONE_ERROR = 0.1  # and of a single integration, whose structure is as sharp as can be
CHANGING = 1.15  # what a deviation counts where the image changes and is kriged: as found best
DARK = 0.6  # and a deviation downwards: hits are bright
PREDICTED = 3.0  # standard deviations within which neighbours predict a pixel


def deviations(images, places, outliers, scores, stale, quick, cutoff):
    """Compute how far suspects deviate from their prediction, in standard deviations.

    `images` is (data, err, usable), `places` three arrays (integration, y, x), `outliers`
    those known so far, which predict nothing; images have no structure beyond `cutoff`, cycles per
    pixel. `scores` are replaced where `stale`; with `quick` by 0 where neighbours hold more than
    noise.
    """
    offsets, _ = neighbours(NEAR)
    offsets = offsets[np.argsort(-np.sum(offsets**2, axis=1), kind="stable")]
    squares = np.sum((offsets[:, None] - offsets[None]) ** 2, axis=-1)
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
    size = offsets.shape[0]
    images = data, err, usable, outliers
    correlations = offsets, between, to_centre
    space = (
        np.empty(size, np.int64),
        np.empty((4, size)),
        np.empty((size, size)),
        np.empty((BESIDE, BESIDE + 2)),
    )
    chosen = np.empty(WINDOW, np.int64)
    for k in range(first, stop):
        if stale[k]:
            where = integration[k], row[k], column[k]
            scores[k] = _score(images, where, correlations, space, chosen, quick)


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _score(images, where, correlations, space, chosen, quick):
    """Deviation of one suspect; 0 where another integration is the outlier, or nothing is known."""
    data = images[0]
    i, y, x = where
    n = data.shape[0]
    middle = _choose(images, where, chosen)
    if n > 1 and middle == 0:  # nobody to compare with: the verdict stays
        return np.inf if images[3][i, y, x] and not quick else 0.0
    left, variance, quiet = _predict(images, where, chosen, middle, correlations, space, quick)
    if quick and not quiet:
        return 0.0
    score = left / np.sqrt(variance)
    if n > 1 and not quiet:
        score *= CHANGING
        if n > 2 and score < 0.0:
            score *= DARK
    if n == 2:
        hit = i if score > 0.0 else 1 - i
        if _lower_is_hit(images, 1 - hit, hit, y, x, chosen, correlations, space):
            hit = 1 - hit
        return abs(score) if hit == i else 0.0
    return abs(score) if n > 2 else max(score, 0.0)


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _lower_is_hit(images, low, high, y, x, chosen, correlations, space):
    """Is the lower of two integrations the outlier, by the neighbours in both?"""
    left, variance, _ = _predict(images, (high, y, x), chosen, 0, correlations, space, False)
    if not abs(left) <= PREDICTED * np.sqrt(variance):
        return False
    left, variance, _ = _predict(images, (low, y, x), chosen, 0, correlations, space, False)
    return left < -2.0 * PREDICTED * np.sqrt(variance)


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _choose(images, where, chosen):
    """Choose up to `MIDDLE` integrations of middling value to compare with.

    They are written into `chosen`; returns how many there are.
    """
    data, _, usable, outliers = images
    i, y, x = where
    n = data.shape[0]
    start = max(0, min(i - WINDOW // 2, n - WINDOW))
    stop = min(start + WINDOW, n)
    count = 0
    for j in range(start, stop):
        count += j == i or (usable[j, y, x] and (n == 2 or not outliers[j, y, x]))
    keep = count if count <= 3 else min(MIDDLE, count - 2)
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
    return middle


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _rank(images, where, j, start, stop):
    """How many integrations have a smaller value than j, of those that may be compared."""
    data, _, usable, outliers = images
    i, y, x = where
    rank, value = 0, data[j, y, x]
    for k in range(start, stop):
        if k == i or (usable[k, y, x] and (len(data) == 2 or not outliers[k, y, x])):
            other = data[k, y, x]
            rank += other < value or (other == value and k < j)
    return rank


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _read(images, i, y, x, chosen, middle):
    """Difference of a pixel from the mean of the middling ones, and the variance of its noise."""
    data, err = images[0], images[1]
    base, noise = 0.0, 0.0
    for k in range(middle):
        e = np.float64(err[chosen[k], y, x])
        base += data[chosen[k], y, x]
        noise += e * e
    if middle:
        base /= middle
        noise /= middle * middle
    e = np.float64(err[i, y, x])
    return data[i, y, x] - base, e * e + noise


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _collect(images, where, chosen, middle, offsets, space):
    """Collect the neighbours that predict a suspect, into `space`: which, values, and noise.

    Returns how many there are, how many of these are among the nearest, their mean, which is taken
    out of the values, and the mean variance of their noise.
    """
    usable, outliers = images[2], images[3]
    which, (values, noises, _, _) = space[0], space[1]
    i, y, x = where
    ny, nx = usable.shape[1:]
    n, beside, mean, noise = 0, 0, 0.0, 0.0
    for m in range(offsets.shape[0]):
        v, u = y + offsets[m, 0], x + offsets[m, 1]
        if not (0 <= v < ny and 0 <= u < nx and usable[i, v, u]) or outliers[i, v, u]:
            continue
        good = True
        for k in range(middle):
            good = good and usable[chosen[k], v, u] and not outliers[chosen[k], v, u]
        if not good:
            continue
        which[n] = m
        values[n], noises[n] = _read(images, i, v, u, chosen, middle)
        mean += values[n]
        noise += noises[n]
        beside += m >= offsets.shape[0] - BESIDE
        n += 1
    if n == 0:
        return 0, 0, 0.0, 0.0
    mean /= n
    for a in range(n):
        values[a] -= mean
    return n, beside, mean, noise / n


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _predict(images, where, chosen, middle, correlations, space, if_quiet):
    """Predict a suspect's difference from other integrations by its neighbours.

    Returns what the prediction leaves, the variance of that, and whether the neighbours hold
    nothing but noise; with `if_quiet` no more is computed than that.
    """
    values = space[1][0]
    i, y, x = where
    n, beside, mean, noise = _collect(images, where, chosen, middle, correlations[0], space)
    left, variance = _read(images, i, y, x, chosen, middle)
    if n < FEWEST:
        return (0.0 if middle == 0 else left), variance, True
    power = 0.0
    for a in range(n):
        power += values[a] * values[a]
    signal = power / n - noise
    left -= mean
    if signal <= MOSTLY_NOISE * noise:
        return left, variance + max(signal, 0.0), True
    if if_quiet:
        return left, variance, False
    value, unknown, misfit = _krige(n, beside, signal, len(images[0]) == 1, correlations, space)
    if len(images[0]) == 1:  # how well the model fits the neighbours tells how good it is
        variance += (ALONE_ERROR * value) ** 2
        unknown *= max(misfit, 1.0)
    elif middle:  # not where it only decides which of two is hit
        variance += (MODEL_ERROR * value) ** 2
    return left - value, variance + max(signal * unknown, 0.0), False


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _krige(n, beside, signal, alone, correlations, space):
    """Krige a pixel from `n` values without a mean; of the last `beside` without outliers.

    Returns the value, the share of the signal's variance that stays unknown, and the mean square of
    the values that are not left out, in units of what the correlations and the noise let expect.
    """
    _, between, to_centre = correlations
    which, (values, noises, weights, rest), matrix, _ = space
    for a in range(n):
        for b in range(a + 1):
            matrix[a, b] = between[which[a], which[b]]
        matrix[a, a] += max(noises[a] / signal, NOISE_FLOOR)
    if not _factor(matrix, n):
        return 0.0, 1.0, 1.0
    value, unknown, misfit = 0.0, 1.0, 0.0
    for a in range(n):  # correlations with the pixel, and values, both decorrelated
        w, r = to_centre[which[a]], values[a]
        for k in range(a):
            w -= matrix[a, k] * weights[k]
            r -= matrix[a, k] * rest[k]
        weights[a], rest[a] = w / matrix[a, a], r / matrix[a, a]
        value += weights[a] * rest[a]
        unknown -= weights[a] * weights[a]
        misfit += rest[a] * rest[a] / (n * signal)
    limit = STANDS_OUT * STANDS_OUT * signal * (max(misfit, 1.0) if alone else 1.0)
    change, more, square, left_out = _of_outliers(n - beside, beside, limit, space)
    misfit = (n * misfit - square / signal) / max(n - left_out, 1)
    return value - change, unknown + more, misfit


# as in gpucoron.ops.cpu.kriging, whose sums may be taken in any order: these must not, so that
# verdicts are the same on every processor
@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _factor(matrix, n):
    """Factor the leading n x n block in place (Cholesky); False if it is not positive definite."""
    for j in range(n):
        d = matrix[j, j]
        for k in range(j):
            d -= matrix[j, k] * matrix[j, k]
        if not d > 0.0:
            return False
        d = np.sqrt(d)
        matrix[j, j] = d
        for a in range(j + 1, n):
            s = matrix[a, j]
            for k in range(j):
                s -= matrix[a, k] * matrix[j, k]
            matrix[a, j] = s / d
    return True


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _of_outliers(first, count, limit, space):
    """What neighbours that stand out add to a kriged value, and take off its unknown variance.

    Then what they add to the sum of squares, and their number.

    A value that is not known is one with an unknown excess. Its fit needs the trailing block L of
    the factored matrix only, as the nearest neighbours come last: the normal equations are
    ``(L L^T)^-1``, with ``L^-T`` of the decorrelated values and correlations beside them. The
    neighbour that stands out most is eliminated from these (Gauss and Jordan), and so on.
    """
    _, (_, _, weights, rest), matrix, table = space
    for c in range(count + 2):
        for a in range(count):
            if c >= count:
                table[a, c] = weights[first + a] if c == count else rest[first + a]
                continue
            s = 1.0 if a == c else 0.0
            for k in range(a):
                s -= matrix[first + a, first + k] * table[k, c]
            table[a, c] = s / matrix[first + a, first + a]
        for a in range(count - 1, -1, -1):
            s = table[a, c]
            for k in range(a + 1, count):
                s -= matrix[first + k, first + a] * table[k, c]
            table[a, c] = s / matrix[first + a, first + a]
    change, more, square, left_out = 0.0, 0.0, 0.0, 0
    for _ in range(count):
        most, p = limit, -1
        for a in range(count):
            if table[a, a] > 0.0 and table[a, count + 1] ** 2 > most * table[a, a]:
                most, p = table[a, count + 1] ** 2 / table[a, a], a
        if p < 0:
            break
        pivot = table[p, p]
        change += table[p, count] * table[p, count + 1] / pivot
        more += table[p, count] ** 2 / pivot
        square += most
        left_out += 1
        for a in range(count):
            if a != p and table[a, a] > 0.0:
                share = table[a, p] / pivot
                for b in range(count + 2):
                    table[a, b] -= share * table[p, b]
        table[p, p] = 0.0
    return change, more, square, left_out
