"""The registration's loops for the CPU, compiled by numba."""

import numpy as np
from numba import njit

from gpucoron.backend.parallel import over_rows

ROWS = 4  # of a spectrum, summed together
STEP_TOLERANCE = 1e-8  # of Newton's last step, in pixels: the error left is its square
MAX_ITERATIONS = 40
SAME = 2e-12  # share of C^2/B that rounding may take off at the maximum
LONGEST_STEP = 0.2  # in units of the box
PAIRS = 2**15  # fitted together, with 30 kB for each


def batch_size(pixels):
    """How many images of so many pixels are worked on together: one stays in the cache."""
    return 1


def allocate(n, ny, nh):
    """Room for `n` half spectra: separate real and imaginary planes, for vector loops."""
    return np.empty((n, ny, nh)), np.empty((n, ny, nh))


def pack(spectra):
    """Half spectra as `contract` takes them."""
    return spectra.real.copy(), spectra.imag.copy()


def unpack(packed, index):
    """Some of the packed values as complex numbers again."""
    return packed[0][index] + 1j * packed[1][index]


def put(packed, index, spectra):
    """Replace some of the packed spectra."""
    packed[0][index], packed[1][index] = spectra.real, spectra.imag


def tables(y, x):
    """The `PhaseSeries` of both axes as `contract` takes them."""
    return y.even, y.odd, x.even, x.odd


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _fold_row(gr, gi, fr, fi, up, down, er, ei, dr, di):
    """Sum and difference of the rows +k and -k of conj(G) F; one that is both counts once."""
    scale = 0.5 if up == down else 1.0
    for x in range(er.size):
        pr = gr[up, x] * fr[up, x] + gi[up, x] * fi[up, x]
        pi = gr[up, x] * fi[up, x] - gi[up, x] * fr[up, x]
        qr = gr[down, x] * fr[down, x] + gi[down, x] * fi[down, x]
        qi = gr[down, x] * fi[down, x] - gi[down, x] * fr[down, x]
        er[x] = scale * (pr + qr)
        ei[x] = scale * (pi + qi)
        dr[x] = scale * (pr - qr)
        di[x] = scale * (pi - qi)


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _accumulate(target, coefficients, rows):
    """Add ROWS rows to every accumulator at once: it is loaded and stored less often."""
    for j in range(target.shape[0]):
        c0, c1, c2, c3 = (
            coefficients[0, j],
            coefficients[1, j],
            coefficients[2, j],
            coefficients[3, j],
        )
        for x in range(target.shape[1]):
            target[j, x] += (c0 * rows[0, x] + c1 * rows[1, x]) + (
                c2 * rows[2, x] + c3 * rows[3, x]
            )


@njit(cache=True)
def _contract_columns(sums, factors, sign, out):
    """Multiply the sums over rows (terms, nh) by the columns' factors (nh, terms)."""
    row = np.empty(factors.shape[1])
    for j in range(sums.shape[0]):
        row[:] = 0.0
        for x in range(sums.shape[1]):
            v = sums[j, x]
            for m in range(row.size):
                row[m] += v * factors[x, m]
        for m in range(row.size):
            out[j, m] = sign * row[m]


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _contract_rows(gr, gi, fr, fi, y_even, y_odd, x_even, x_odd, first, last, out):
    """Chebyshev coefficients (terms_y, terms_x) of Re sum conj(G) F phase_y phase_x.

    The sum is over the rows first .. last - 1 of the frequencies 0 .. ny // 2, each together with
    its negative. Rows are summed column by column first (vectors of nh), columns last.
    """
    ny, nh = gr.shape
    ne, no = y_even.shape[1], y_odd.shape[1]
    er, ei = np.zeros((ROWS, nh)), np.zeros((ROWS, nh))
    dr, di = np.zeros((ROWS, nh)), np.zeros((ROWS, nh))
    ce, co = np.zeros((ROWS, ne)), np.zeros((ROWS, no))
    ar, ai = np.zeros((ne, nh)), np.zeros((ne, nh))
    br, bi = np.zeros((no, nh)), np.zeros((no, nh))
    for start in range(first, last, ROWS):
        for r in range(ROWS):
            k = start + r
            if k < last:
                _fold_row(gr, gi, fr, fi, k, (ny - k) % ny, er[r], ei[r], dr[r], di[r])
                for j in range(ne):  # assigning whole rows would compile numba's error messages
                    ce[r, j] = y_even[k, j]
                for j in range(no):
                    co[r, j] = y_odd[k, j]
            else:
                ce[r], co[r] = 0.0, 0.0
        _accumulate(ar, ce, er)
        _accumulate(ai, ce, ei)
        _accumulate(br, co, dr)
        _accumulate(bi, co, di)
    _contract_columns(ar, x_even, 1.0, out[0::2, 0::2])
    _contract_columns(ai, x_odd, 1.0, out[0::2, 1::2])
    _contract_columns(bi, x_even, 1.0, out[1::2, 0::2])
    _contract_columns(br, x_odd, -1.0, out[1::2, 1::2])


@njit(cache=True, nogil=True)
def _contract_blocks(
    first,
    stop,
    real,
    imag,
    which,
    frames_real,
    frames_imag,
    of_frame,
    y_even,
    y_odd,
    x_even,
    x_odd,
    blocks,
    parts,
):
    rows = real.shape[1] // 2 + 1
    for t in range(first, stop):
        i, b = t // blocks, t % blocks
        r, f = which[i], of_frame[i]
        _contract_rows(
            real[r],
            imag[r],
            frames_real[f],
            frames_imag[f],
            y_even,
            y_odd,
            x_even,
            x_odd,
            rows * b // blocks,
            rows * (b + 1) // blocks,
            parts[i, b],
        )


def contract(spectra, which, frames, of_frame, of_axes, scale, blocks):
    """Contract the chosen spectra with the chosen frames', in a fixed number of blocks of rows.

    `which` and `of_frame` (n,) say which of the packed spectra and frames make each pair; `of_axes`
    is from `tables`. Returns (n, terms_y, terms_x) float64, multiplied by `scale`. The blocks are
    what threads share where there are few pairs; their number, and not that of the threads, decides
    the order of summation.
    """
    y_even, y_odd, x_even, x_odd = of_axes
    ny, nx = y_even.shape[1] + y_odd.shape[1], x_even.shape[1] + x_odd.shape[1]
    parts = np.empty((which.size, blocks, ny, nx))
    over_rows(
        _contract_blocks,
        which.size * blocks,
        *spectra,
        which,
        *frames,
        of_frame,
        *of_axes,
        blocks,
        parts,
    )
    return parts.sum(axis=1) * scale


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _chebyshev(t, terms, p, d, dd):
    """T_j(t) and its first and second derivatives, by recurrence."""
    p[0], d[0], dd[0] = 1.0, 0.0, 0.0
    p[1], d[1], dd[1] = t, 1.0, 0.0
    for j in range(2, terms):
        p[j] = 2.0 * t * p[j - 1] - p[j - 2]
        d[j] = 2.0 * p[j - 1] + 2.0 * t * d[j - 1] - d[j - 2]
        dd[j] = 4.0 * d[j - 1] + 2.0 * t * dd[j - 1] - dd[j - 2]


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _evaluate(c, ty, tx, work, out):
    """Value, gradient (y, x) and Hessian (yy, xy, xx) of a series in units of the box."""
    ny, nx = c.shape
    py, dy, ddy = work[0], work[1], work[2]
    px, dx, ddx = work[3], work[4], work[5]
    _chebyshev(ty, ny, py, dy, ddy)
    _chebyshev(tx, nx, px, dx, ddx)
    out[:] = 0.0
    for j in range(ny):
        s0, s1, s2 = 0.0, 0.0, 0.0
        for m in range(nx):
            s0 += c[j, m] * px[m]
            s1 += c[j, m] * dx[m]
            s2 += c[j, m] * ddx[m]
        out[0] += py[j] * s0
        out[1] += dy[j] * s0
        out[2] += py[j] * s1
        out[3] += ddy[j] * s0
        out[4] += dy[j] * s1
        out[5] += py[j] * s2


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _score(c, b):
    """C^2/B, or 0 where the brightness would not be positive."""
    return c / b * c if c > 0.0 and b > 0.0 else 0.0


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _on_grid(c, polynomials_y, polynomials_x):
    """Values of a series on a grid, of which the polynomials' values are given."""
    n, terms_x = polynomials_y.shape[0], c.shape[1]
    half, out = np.zeros((n, terms_x)), np.zeros((n, n))
    for i in range(n):
        for j in range(c.shape[0]):
            for m in range(terms_x):
                half[i, m] += polynomials_y[i, j] * c[j, m]
    for i in range(n):
        for k in range(n):
            for m in range(terms_x):
                out[i, k] += half[i, m] * polynomials_x[k, m]
    return out


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _start(c, b, grid, polynomials):
    """Best point of a coarse grid over the box; `grid` holds its points in units of the box.

    The middle where no point has a positive brightness.
    """
    terms = polynomials[:, : c.shape[0]], polynomials[:, : c.shape[1]]
    cv = _on_grid(c, *terms)
    terms = polynomials[:, : b.shape[0]], polynomials[:, : b.shape[1]]
    bv = _on_grid(b, *terms)
    best, by, bx = 0.0, 0.0, 0.0
    for i in range(grid.size):
        for k in range(grid.size):
            value = _score(cv[i, k], bv[i, k])
            if value > best:
                best, by, bx = value, grid[i], grid[k]
    return by, bx


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _ascent_step(cv, bv):
    """Newton's step for ln(C^2/B), or one up the gradient where it is not concave."""
    gy = 2.0 * cv[1] / cv[0] - bv[1] / bv[0]
    gx = 2.0 * cv[2] / cv[0] - bv[2] / bv[0]
    hyy = 2.0 * (cv[3] / cv[0] - (cv[1] / cv[0]) ** 2) - bv[3] / bv[0] + (bv[1] / bv[0]) ** 2
    hxy = (
        2.0 * (cv[4] / cv[0] - cv[1] * cv[2] / cv[0] ** 2)
        - bv[4] / bv[0]
        + bv[1] * bv[2] / bv[0] ** 2
    )
    hxx = 2.0 * (cv[5] / cv[0] - (cv[2] / cv[0]) ** 2) - bv[5] / bv[0] + (bv[2] / bv[0]) ** 2
    det = hyy * hxx - hxy * hxy
    if hyy < 0.0 and det > 0.0:
        sy, sx = -(hxx * gy - hxy * gx) / det, -(hyy * gx - hxy * gy) / det
        concave = True
    else:
        norm = np.sqrt(gy * gy + gx * gx)
        sy, sx = LONGEST_STEP * gy / (norm + 1e-300), LONGEST_STEP * gx / (norm + 1e-300)
        concave = False
    length = np.sqrt(sy * sy + sx * sx)
    if length > LONGEST_STEP:
        sy, sx = sy * LONGEST_STEP / length, sx * LONGEST_STEP / length
    return sy, sx, concave


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _maximise(c, b, grid, polynomials, half_width, work, cv, bv):
    """Maximise C^2/B in the box; gives (ty, tx, converged, iterations), last values in cv, bv."""
    ty, tx = 0.0, 0.0
    if grid.size > 0:
        ty, tx = _start(c, b, grid, polynomials)
    _evaluate(c, ty, tx, work, cv)
    _evaluate(b, ty, tx, work, bv)
    if cv[0] <= 0.0 or bv[0] <= 0.0:
        return ty, tx, False, 0
    value = _score(cv[0], bv[0])
    for iteration in range(1, MAX_ITERATIONS + 1):
        sy, sx, concave = _ascent_step(cv, bv)
        fraction = 1.0
        while True:
            ny, nx = ty + fraction * sy, tx + fraction * sx
            ny, nx = min(1.0, max(-1.0, ny)), min(1.0, max(-1.0, nx))
            _evaluate(c, ny, nx, work, cv)
            _evaluate(b, ny, nx, work, bv)
            new = _score(cv[0], bv[0])
            if new >= (1.0 - SAME) * value or fraction < 1e-3:
                break
            fraction *= 0.5
        moved = half_width * np.sqrt((ny - ty) ** 2 + (nx - tx) ** 2)
        ty, tx, value = ny, nx, new
        if moved < STEP_TOLERANCE:
            inside = abs(ty) < 1.0 and abs(tx) < 1.0
            return ty, tx, concave and inside and fraction == 1.0, iteration
    return ty, tx, False, MAX_ITERATIONS


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _inverse_diagonal(a, b, c, d, e, f):
    """Diagonal of the inverse of [[a, b, c], [b, d, e], [c, e, f]], NaN unless positive."""
    det = a * (d * f - e * e) - b * (b * f - c * e) + c * (b * e - c * d)
    if det <= 0.0:
        det = np.nan
    return (d * f - e * e) / det, (a * f - c * c) / det, (a * d - b * b) / det


def fit_pairs(c_series, b_series, b_index, power, total_weight, dof, grid, polynomials, half_width):
    """Fit all pairs; rows of (dy, dx, beta, dy_err, dx_err, beta_err, residual, converged, n)."""
    out = np.empty((c_series.shape[0], 9))
    over_rows(
        _fit_pairs,
        len(out),
        c_series,
        b_series,
        b_index,
        power,
        total_weight,
        dof,
        grid,
        polynomials,
        half_width,
        out,
    )
    return out


@njit(cache=True, nogil=True)
def _fit_pairs(
    first,
    stop,
    c_series,
    b_series,
    b_index,
    power,
    total_weight,
    dof,
    grid,
    polynomials,
    half_width,
    out,
):
    longest = max(
        max(c_series.shape[1], c_series.shape[2]), max(b_series.shape[1], b_series.shape[2])
    )
    for i in range(first, stop):
        work, cv, bv = np.empty((6, longest)), np.empty(6), np.empty(6)
        c, b = c_series[i], b_series[b_index[i]]
        ty, tx, converged, iterations = _maximise(c, b, grid, polynomials, half_width, work, cv, bv)
        beta = cv[0] / bv[0] if bv[0] > 0.0 else 0.0
        left = max(0.0, power[i] - cv[0] * beta)  # R at its minimum
        s1, s2 = 1.0 / half_width, 1.0 / half_width**2
        diagonal = _inverse_diagonal(
            (beta * beta * bv[3] - 2.0 * beta * cv[3]) * s2,
            (beta * beta * bv[4] - 2.0 * beta * cv[4]) * s2,
            2.0 * (beta * bv[1] - cv[1]) * s1,
            (beta * beta * bv[5] - 2.0 * beta * cv[5]) * s2,
            2.0 * (beta * bv[2] - cv[2]) * s1,
            2.0 * bv[0],
        )
        out[i, 0], out[i, 1], out[i, 2] = ty * half_width, tx * half_width, beta
        for k in range(3):
            out[i, 3 + k] = np.sqrt(2.0 * left / dof * diagonal[k]) if diagonal[k] > 0 else np.nan
        out[i, 6] = np.sqrt(left / total_weight)
        out[i, 7], out[i, 8] = (1.0 if converged else 0.0), iterations
