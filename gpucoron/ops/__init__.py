"""Array functions: median, outliers, Fourier shift, registration, KLIP, drizzle."""

from gpucoron.backend.caches import numba_cache

numba_cache()
