"""Many associations on a Dask cluster."""
