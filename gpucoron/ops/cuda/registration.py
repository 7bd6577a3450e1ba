"""The registration's loops for a GPU; the functions of `ops.cpu.registration`."""

import numpy as np

from gpucoron.backend import cuda

PIXELS = 2**22  # of images worked on together, with 0.2 kB of temporary arrays for each
PAIRS = 2**15  # fitted together, with 30 kB for each

WARPS, FIT_WARPS = 6, 4  # of a block of contract and of fit_pairs; registration.cu knows
_RESIDENT = {15: 2, 21: 1}  # blocks on a multiprocessor, by polynomials of each parity


def batch_size(pixels):
    """How many images of so many pixels are worked on together.

    40 of 320 x 320: their half spectra stay in an H100's L2 while references pass by.
    """
    return max(1, PIXELS // pixels)


def allocate(n, ny, nh):
    """Room for `n` half spectra."""
    return cuda.cupy().empty((n, ny, nh), dtype=np.complex128)


def pack(spectra):
    """Half spectra as `contract` takes them."""
    return cuda.cupy().ascontiguousarray(spectra)


def unpack(packed, index):
    """Some of the packed values as complex numbers again."""
    return packed[index]


def put(packed, index, spectra):
    """Replace some of the packed spectra."""
    packed[index] = spectra


def tables(y, x):
    """The `PhaseSeries` of both axes as `contract` takes them: even terms, then odd ones."""
    cp = cuda.cupy()
    return tuple(cp.asarray(np.hstack([axis.even, axis.odd])) for axis in (y, x))


def contract(spectra, which, frames, of_frame, of_axes, scale, blocks):
    """See `ops.cpu.registration.contract`; a block of threads does a pair, whatever `blocks` is."""
    cp = cuda.cupy()
    y_table, x_table = of_axes
    half, (_, ny, columns) = y_table.shape[1] // 2, spectra.shape
    out = cp.empty((len(which), 2 * half, 2 * half))
    kernel = cuda.kernel("registration", f"contract<{half}, {WARPS}, {_RESIDENT[half]}>")
    kernel(
        (len(which),),
        (32 * WARPS,),
        (
            spectra,
            cp.asarray(which, dtype=np.int32),
            frames,
            cp.asarray(of_frame, dtype=np.int32),
            y_table,
            x_table,
            np.int32(ny),
            np.int32(columns),
            np.float64(scale),
            out,
        ),
    )
    return out


def fit_pairs(c_series, b_series, b_index, power, total_weight, dof, grid, polynomials, half_width):
    """See `ops.cpu.registration.fit_pairs`."""
    cp = cuda.cupy()
    n, terms_c, terms_b = len(c_series), c_series.shape[1], b_series.shape[1]
    c_grid, b_grid = (_on_grid(series, polynomials) for series in (c_series, b_series))
    out = cp.empty((n, 9))
    kernel = cuda.kernel("registration", f"fit_pairs<{terms_c}, {terms_b}>")
    kernel(
        (-(-n // FIT_WARPS),),
        (32 * FIT_WARPS,),
        (
            c_series,
            b_series,
            cp.asarray(b_index, dtype=np.int32),
            c_grid,
            b_grid,
            grid,
            np.int32(len(grid)),
            power,
            np.float64(total_weight),
            np.float64(dof),
            np.float64(half_width),
            np.int32(n),
            out,
        ),
    )
    return out


def _on_grid(series, polynomials):
    """Values on the coarse grid, of which the polynomials' values are given."""
    of_y, of_x = polynomials[:, : series.shape[1]], polynomials[:, : series.shape[2]]
    return cuda.cupy().ascontiguousarray(of_y @ (series @ of_x.T))
