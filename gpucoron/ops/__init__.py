"""Arrays in, arrays out; nothing here knows files, stacks or parameters."""

from gpucoron.ops._numba_cache import ensure_cache

ensure_cache()
