"""Array functions on the CPU, with numba and SciPy."""
