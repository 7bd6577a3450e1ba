"""The array functions on a GPU: launches of the kernels."""
