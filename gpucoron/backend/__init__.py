"""Devices, CUDA, transfers, threads, signals and caches."""
