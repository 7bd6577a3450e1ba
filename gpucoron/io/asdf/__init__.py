"""ASDF files: the checks before the asdf package opens one, and the ASDF extension of products."""
