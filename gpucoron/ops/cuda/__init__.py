"""Array functions on a GPU: kernel launches."""
