"""The names of all files that a run writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpucoron.core.products import PRODUCTS

if TYPE_CHECKING:
    from gpucoron.io.association import Product
    from gpucoron.pipeline.inputs import ProductInputs
    from gpucoron.pipeline.run_options import RunOptions


def record_name(names: Sequence[str]) -> str:
    """Return the name of the record of a run that makes products of these `names`."""
    return f"{names[0]}_run.json"


@dataclass(frozen=True)
class OutputNames:
    """Names what one product of an association comes to."""

    options: RunOptions
    asn_id: str | None  # part of the names of exposure-based products
    truncations: tuple[int, ...]  # numbers of KL modes

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
        several = len(self.truncations) > 1 and not self.options.parameters.klip.skip
        return f"_kl{truncate:03d}" if several else ""

    def paths(self, name: str, suffix: str) -> list[Path]:
        """Return where a product goes: a file, or one for each truncation."""
        if suffix not in ("psfsub", "i2d"):
            return [self.path(name, suffix)]
        return [self.path(name, suffix, k) for k in self.truncations]

    def planned(self, inputs: ProductInputs) -> list[Path]:
        """Return all files that will be written."""
        from gpucoron.pipeline.contrast import contrast_paths

        planned = [
            path
            for name, suffix in self._planned(inputs.product, inputs.name)
            for path in self.paths(name, suffix)
        ]
        if self.options.contrast:
            planned += contrast_paths(self.path(inputs.name, "i2d"))
        return planned

    def _planned(self, product: Product, name: str) -> Iterator[tuple[str, str]]:
        """Yield root or product name, and suffix, of all that a product is saved in."""
        from gpucoron.io.names import exposure_root

        p = self.options.parameters
        skipped = {
            "crfints": p.outlier_detection.skip,
            "median": p.outlier_detection.skip,
            "psfalign": p.align_refs.skip or p.klip.skip,
            "psfsub": p.klip.skip,
            "i2d": p.resample.skip,
        }
        kinds = [k for k in PRODUCTS if k in self.options.save and not skipped.get(k)]
        for member in (*product.science, *product.psf):
            of_science = ("psfalign", "psfsub") if member.exptype == "science" else ()
            for kind in kinds:
                if kind in ("crfints", "median", *of_science):
                    yield exposure_root(member.path), kind
        yield from ((name, kind) for kind in kinds if kind in ("psfstack", "i2d"))
