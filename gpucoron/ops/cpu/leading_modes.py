"""KLIP coefficients from the leading eigenvectors alone, by numba.

Where each target has references of its own (ADI with movement), each needs a decomposition, and
only its first K eigenvectors count. LAPACK's drivers spend most of their time on what is not
needed: all eigenvectors, turned back from the tridiagonal form. Here inner products of targets are
turned into that form instead, eigenvalues and vectors of 16 tridiagonal matrices are computed side
by side, and one vector for each number of modes is turned back.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["leading_coefficients"]

LANES = 16  # tridiagonal matrices side by side: two registers of eight doubles
HALVINGS = 54  # of the interval from 0 to the bound of all eigenvalues, to its rounding
PARALLEL = 1e-5  # product of two unit vectors above which they are not told apart
RESIDUAL = 64 * 2.2e-16  # times size and bound: what may be left of T z - value z
FLOOR = 1e-20  # of a pivot, where no eigenvalue is above 1
TINY = 1e-300

_SUMS = {"contract", "reassoc", "nsz"}  # sums in several registers; NaN and infinities are kept


@njit(cache=True, nogil=True)
def leading_coefficients(products, inner, used, truncations, tolerance, out):
    """Compute the references' coefficients of targets that have references of their own.

    Parameters
    ----------
    products : (nref, nref) float64
        Inner products of the references.
    inner : (n, nref) float64
        Those of targets and references.
    used : (n, nref) bool
        The references of each target.
    truncations : (nk,) int64
        Numbers of KL modes, ascending.
    tolerance : float
        Eigenvalues below this times size times largest count as 0.
    out : (nk, n, nref) float64
        Takes the coefficients; of references that are not used it stays as it is.

    Returns
    -------
    (n,) bool
        False for targets whose eigenvectors did not pass the check: they are to be done otherwise.

    Notes
    -----
    Householder's reduction A = Q T Q^T; bisection of T by Sturm counts; eigenvectors by twisted
    factorisations [1]_, made orthogonal to those before. With eigenpairs (v_k, z_k) of T the
    coefficients are ``Q sum_k z_k (z_k . Q^T inner) / v_k``: neither A's eigenvectors nor Q are
    computed. Every residual and every product of two vectors is checked. Targets do not depend on
    which others are computed with them.

    References
    ----------
    .. [1] Dhillon & Parlett 2004, Linear Algebra Appl. 387, 1.
    """
    n, n_refs = used.shape
    good = np.ones(n, dtype=np.bool_)
    matrices = np.empty((LANES, n_refs, n_refs))
    rows = np.empty((LANES, n_refs), dtype=np.int64)
    sizes = np.zeros(LANES, dtype=np.int64)
    v, w, b, back = np.empty(n_refs), np.empty(n_refs), np.empty(n_refs), np.empty(n_refs)
    diagonal, beside = np.zeros((n_refs, LANES)), np.zeros((n_refs, LANES))
    turned, sums = np.empty((n_refs, LANES)), np.empty((len(truncations), n_refs, LANES))
    for first in range(0, n, LANES):
        for lane in range(LANES):
            sizes[lane] = 0
            for i in range(n_refs):
                diagonal[i, lane] = beside[i, lane] = turned[i, lane] = 0.0
        for lane in range(min(LANES, n - first)):
            t, a, row, size = first + lane, matrices[lane], rows[lane], 0
            for j in range(n_refs):
                if used[t, j]:
                    row[size] = j
                    size += 1
            sizes[lane] = size
            for i in range(size):
                for j in range(size):
                    a[i, j] = products[row[i], row[j]]
                b[i] = inner[t, row[i]]
            _reduce(a, b, v, w, size)
            for i in range(size):
                diagonal[i, lane], turned[i, lane] = a[i, i], b[i]
                if i:
                    beside[i, lane] = v[i]
        passed = _combine(diagonal, beside, turned, sizes, truncations, tolerance, sums)
        for lane in range(min(LANES, n - first)):
            t, size = first + lane, sizes[lane]
            good[t] = passed[lane]
            for k in range(len(truncations)):
                for j in range(size):
                    back[j] = sums[k, j, lane]
                _turn_back(matrices[lane], back, size)
                for j in range(size):
                    out[k, t, rows[lane, j]] = back[j]
    return good


# ---- one matrix


@njit(nogil=True, fastmath=_SUMS)
def _reduce(a, b, v, w, n):
    """Make a symmetric matrix tridiagonal by reflections, the last row first, and turn `b` alike.

    Afterwards the diagonal of `a` is that of T, `v[i]` has the element of T beside it in row i, and
    row i of `a` has the reflection's vector u (1 - u u^T) before the diagonal. The rows are
    changed, and multiplied by the next u, in one pass over the matrix. `w` is scratch.
    """
    beside = np.zeros(n)
    for j in range(n):
        v[j], w[j] = 0.0, 0.0
    u = np.empty(n)
    for m in range(n - 1, -1, -1):
        row, vm, wm = a[m], v[m], w[m]
        for j in range(m + 1):
            row[j] -= vm * w[j] + wm * v[j]
        if m == 0:
            break
        beside[m] = _reflection(row, u, m)
        product = 0.0
        for j in range(m):
            product += u[j] * b[j]
        for j in range(m):
            b[j] -= product * u[j]
        for i in range(0, m - 1, 2):
            row[i], row[i + 1] = _two_rows(
                a[i], a[i + 1], v[i], v[i + 1], w[i], w[i + 1], v, w, u, m
            )
        if m % 2:
            row[m - 1], _ = _two_rows(a[m - 1], u, v[m - 1], 0.0, w[m - 1], 0.0, v, w, u, m)
        half = 0.0
        for j in range(m):
            half += row[j] * u[j]
        half *= 0.5
        for j in range(m):
            w[j] = row[j] - half * u[j]
            v[j] = u[j]
            row[j] = u[j]
    for i in range(n):
        v[i] = beside[i]


@njit(nogil=True, fastmath=_SUMS)
def _reflection(row, u, m):
    """Make u so that 1 - u u^T turns the first m elements of a row to the last; return that."""
    total = 0.0
    for j in range(m):
        u[j] = row[j]
        total += u[j] * u[j]
    norm, last = np.sqrt(total), u[m - 1]
    sign = 1.0 if last >= 0.0 else -1.0
    power = norm * (norm + abs(last))
    scale = 1.0 / np.sqrt(power) if power > TINY else 0.0
    u[m - 1] += sign * norm
    for j in range(m):
        u[j] *= scale
    return -sign * norm if scale > 0.0 else last


@njit(nogil=True, fastmath=_SUMS)
def _two_rows(first, second, v0, v1, w0, w1, v, w, u, m):
    """Subtract v w^T + w v^T from two rows; return their products with u."""
    total0, total1 = 0.0, 0.0
    for j in range(m):
        vj, wj, uj = v[j], w[j], u[j]
        one = first[j] - (v0 * wj + w0 * vj)
        two = second[j] - (v1 * wj + w1 * vj)
        first[j], second[j] = one, two
        total0 += one * uj
        total1 += two * uj
    return total0, total1


@njit(nogil=True, fastmath=_SUMS)
def _turn_back(a, y, n):
    """Turn a vector of the tridiagonal form back to that of the matrix, in place."""
    for m in range(1, n):
        u, product = a[m], 0.0
        for j in range(m):
            product += u[j] * y[j]
        for j in range(m):
            y[j] -= product * u[j]


# ---- tridiagonal matrices side by side


@njit(nogil=True)
def _combine(diagonal, beside, turned, sizes, truncations, tolerance, sums):
    """Sum ``z (z . b) / value`` over the first eigenpairs for each truncation; return checks."""
    n, most = len(diagonal), truncations[-1]
    most = min(most, n)
    bound, scale, square = np.zeros(LANES), np.empty(LANES), np.empty((n, LANES))
    for i in range(n):
        for lane in range(LANES):
            radius = abs(beside[i, lane])
            if i < n - 1:
                radius += abs(beside[i + 1, lane])
            bound[lane] = max(bound[lane], abs(diagonal[i, lane]) + radius)
    for lane in range(LANES):
        scale[lane] = 1.0 / bound[lane] if bound[lane] > TINY else 1.0
    for i in range(n):
        for lane in range(LANES):
            diagonal[i, lane] *= scale[lane]
            beside[i, lane] *= scale[lane]
            square[i, lane] = beside[i, lane] * beside[i, lane]
    values = np.empty((most, LANES))
    low, high = np.empty((most, LANES)), np.empty((most, LANES))
    p, count = np.empty((most, LANES)), np.empty((most, LANES))
    _largest_values(diagonal, square, values, low, high, p, count)
    passed = np.ones(LANES, dtype=np.bool_)
    vectors, y = np.empty((most, n, LANES)), np.zeros((n, LANES))
    place = 0
    while place < len(truncations) and truncations[place] == 0:
        _copy(sums[place], y)
        place += 1
    for k in range(most):
        z = vectors[k]
        left = _vectors(diagonal, beside, values[k], z)
        for lane in range(LANES):
            # beyond the rank nothing is added, and nothing needs to be right
            least = tolerance * sizes[lane] * values[0, lane]
            if not (bound[lane] > TINY and values[k, lane] > least):
                for i in range(n):
                    z[i, lane] = 0.0
            elif not left[lane] <= RESIDUAL * n:
                passed[lane] = False
        for other in range(k):
            along = _dots(vectors[other], z)
            for lane in range(LANES):
                if not abs(along[lane]) < PARALLEL:
                    passed[lane] = False
            _add(z, along, vectors[other], -1.0)
        amplitude = _dots(z, turned)
        for lane in range(LANES):
            if amplitude[lane] != 0.0:
                amplitude[lane] *= scale[lane] / values[k, lane]
        _add(y, amplitude, z, 1.0)
        while place < len(truncations) and (k + 1 == truncations[place] or k + 1 == most):
            _copy(sums[place], y)
            place += 1
    return passed


@njit(nogil=True)
def _largest_values(diagonal, square, value, low, high, p, count):
    """Bisect for the largest eigenvalues between 0 and 1: `value` (k, LANES) takes them."""
    n, most = len(diagonal), len(value)
    for j in range(most):
        for lane in range(LANES):
            low[j, lane], high[j, lane] = 0.0, 1.0
    for _ in range(HALVINGS):
        for j in range(most):
            for lane in range(LANES):
                value[j, lane] = 0.5 * (low[j, lane] + high[j, lane])
                p[j, lane], count[j, lane] = 1.0, 0.0
        for i in range(n):
            d, s = diagonal[i], square[i]
            for j in range(most):
                pj, vj, cj = p[j], value[j], count[j]
                for lane in range(LANES):
                    pivot = pj[lane]
                    pivot = -FLOOR if abs(pivot) < FLOOR else pivot
                    pivot = d[lane] - vj[lane] - s[lane] / pivot
                    pj[lane] = pivot
                    cj[lane] += 1.0 if pivot >= 0.0 else 0.0  # eigenvalues above
        for j in range(most):
            for lane in range(LANES):
                above = count[j, lane] > j
                low[j, lane] = value[j, lane] if above else low[j, lane]
                high[j, lane] = high[j, lane] if above else value[j, lane]


@njit(nogil=True)
def _vectors(diagonal, beside, value, z):
    """Compute unit eigenvectors by twisted factorisations; return what they leave, (LANES,)."""
    n = len(diagonal)
    down, up = np.empty(z.shape), np.empty(z.shape)
    least, twist, total = np.empty(LANES), np.zeros(LANES), np.zeros(LANES)
    for lane in range(LANES):
        least[lane] = np.inf
    for i in range(n):
        for lane in range(LANES):
            p = diagonal[i, lane] - value[lane]
            p = p if i == 0 else p - beside[i, lane] ** 2 / down[i - 1, lane]
            p = -FLOOR if abs(p) < FLOOR else p
            down[i, lane] = p
    for i in range(n - 1, -1, -1):
        for lane in range(LANES):
            d = diagonal[i, lane] - value[lane]
            p = d if i == n - 1 else d - beside[i + 1, lane] ** 2 / up[i + 1, lane]
            p = -FLOOR if abs(p) < FLOOR else p
            up[i, lane] = p
            gamma = abs(down[i, lane] + p - d)
            twist[lane] = i if gamma < least[lane] else twist[lane]
            least[lane] = min(gamma, least[lane])
    for i in range(n - 1, -1, -1):
        for lane in range(LANES):
            ratio = 0.0 if i == n - 1 else -beside[i + 1, lane] * z[i + 1, lane] / down[i, lane]
            z[i, lane] = ratio if i < twist[lane] else (1.0 if i == twist[lane] else 0.0)
    for i in range(n):
        for lane in range(LANES):
            if i > twist[lane]:
                z[i, lane] = -beside[i, lane] * z[i - 1, lane] / up[i, lane]
            total[lane] += z[i, lane] ** 2
    for lane in range(LANES):
        total[lane] = 1.0 / np.sqrt(total[lane])
        least[lane] *= total[lane]
    for i in range(n):
        for lane in range(LANES):
            z[i, lane] *= total[lane]
    return least


@njit(nogil=True)
def _dots(a, b):
    total = np.zeros(LANES)
    for i in range(len(a)):
        for lane in range(LANES):
            total[lane] += a[i, lane] * b[i, lane]
    return total


@njit(nogil=True)
def _add(out, factor, a, sign):
    for i in range(len(a)):
        for lane in range(LANES):
            out[i, lane] += sign * factor[lane] * a[i, lane]


@njit(nogil=True)
def _copy(out, a):
    for i in range(len(a)):
        for lane in range(LANES):
            out[i, lane] = a[i, lane]
