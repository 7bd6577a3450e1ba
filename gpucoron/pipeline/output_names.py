"""The names of all files that a run writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpucoron.io.association import Product
    from gpucoron.pipeline.inputs import RunInputs
    from gpucoron.pipeline.run_options import RunOptions


@dataclass(frozen=True)
class OutputNames:
    """Names the products of a run."""

    options: RunOptions
    asn_id: str | None  # part of the names of exposure-based products

    def path(self, name: str, suffix: str, truncate: int | None = None) -> Path:
        """Return where a product goes: `name` is an exposure's root, or a product's name."""
        from gpucoron.io.products import product_path

        path = product_path(self.options.folder, name, self.asn_id, suffix)
        if truncate is None:
            return path
        stem = path.name.removesuffix(f"_{suffix}.fits")
        return path.with_name(f"{stem}{self.tag(truncate)}_{suffix}.fits")

    def tag(self, truncate: int) -> str:
        """Return what tells the products of one truncation from another's, if there are several."""
        klip = self.options.parameters.klip
        return f"_kl{truncate:03d}" if len(klip.truncations) > 1 and not klip.skip else ""

    def paths(self, name: str, suffix: str) -> list[Path]:
        """Return where a product goes: a file, or one for each truncation."""
        if suffix not in ("psfsub", "i2d"):
            return [self.path(name, suffix)]
        return [self.path(name, suffix, k) for k in self.options.parameters.klip.truncations]

    def planned(self, inputs: RunInputs) -> list[Path]:
        """Return all files that the products of an association will be written to."""
        return [
            path
            for own in inputs.products
            for name, suffix in self._planned(own.product, own.name)
            for path in self.paths(name, suffix)
        ]

    def _planned(self, product: Product, name: str) -> Iterator[tuple[str, str]]:
        """Yield root or product name, and suffix, of all that a product is saved in."""
        from gpucoron.io.names import exposure_root

        p = self.options.parameters
        flagged = {"crfints", "median"} if not p.outlier_detection.skip else set()
        subtracted = set() if p.klip.skip else {"psfsub"}
        if not (p.klip.skip or p.align_refs.skip):
            subtracted.add("psfalign")
        combined = {"psfstack"} | (set() if p.resample.skip else {"i2d"})
        for member in (*product.science, *product.psf):
            made = flagged | subtracted if member.exptype == "science" else flagged
            yield from self._saved(exposure_root(member.path), made)
        yield from self._saved(name, combined)

    def _saved(self, name, made) -> Iterator[tuple[str, str]]:
        from gpucoron.core.products import PRODUCTS

        return ((name, suffix) for suffix in PRODUCTS if suffix in made & self.options.save)
