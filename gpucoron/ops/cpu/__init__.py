"""The array functions on the CPU, by numba and SciPy."""
