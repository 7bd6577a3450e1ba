"""Arrays in, arrays out; nothing here knows files, stacks or parameters."""

from gpucoron.backend.caches import numba_cache

numba_cache()
