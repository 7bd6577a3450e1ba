"""The files of a single step: which is what, whether they go together, and names of products."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.errors import ExposureError, UsageError
from gpucoron.pipeline.expected_star import check_given_star
from gpucoron.pipeline.inputs import ProductInputs, Psfmask, RunInputs, read_masks
from gpucoron.pipeline.planning import Plan
from gpucoron.pipeline.product_context import ProductContext

if TYPE_CHECKING:
    from gpucoron.io.association import Association
    from gpucoron.io.exposures import Exposure
    from gpucoron.pipeline.run import Run

__all__ = ["MAKES", "StepFiles", "StepInputs"]

log = logging.getLogger("gpucoron")

#: What each step makes.
MAKES = {
    "outlier_detection": "crfints",
    "stack_refs": "psfstack",
    "align_refs": "psfalign",
    "klip": "psfsub",
    "resample": "i2d",
}
_TAKES = {
    "outlier_detection": ("exposure",),
    "stack_refs": ("exposure",),
    "align_refs": ("exposure", "psfstack"),
    "klip": ("exposure", "psfalign", "psfstack"),
    "resample": ("psfsub", "exposure"),
}
_WORDS = {"exposure": "exposure (calints, cal or crfints)"}
# steps that may be missing before a step, and the keyword that says so in its product
_BEFORE = {step: {"outlier_detection": "S_OUTLIR"} for step in ("stack_refs", "align_refs", "klip")}
_BEFORE["resample"] = {"outlier_detection": "S_OUTLIR", "klip": "S_KLIP"}
_STANDARD_ID = "a3001"  # what jwst gives an association made by hand


class StepFiles:
    """The files of a step by what they hold: exposures, and products of the steps before.

    Raises
    ------
    UsageError
        A file that the step does not take; with `some` and `one`, one that it lacks.
    """

    def __init__(self, step: str, files: Iterable[str | Path]):
        from gpucoron.io.step_products import product_kind

        self._step = step
        self._kinds: dict[str, list[Path]] = {}
        for path in dict.fromkeys(map(Path, files)):
            kind = product_kind(path)
            if kind not in _TAKES[step]:
                expected = ", ".join(_word(kind) for kind in _TAKES[step])
                raise UsageError(f"{path} is of kind {kind}, but {step} takes: {expected}")
            self._kinds.setdefault(kind, []).append(path)

    def of(self, kind: str) -> list[Path]:
        """Return the files of a kind."""
        return self._kinds.get(kind, [])

    def some(self, kind: str) -> list[Path]:
        """Return the files of a kind, of which there must be any."""
        if not self.of(kind):
            raise UsageError(f"{self._step}: no {_word(kind)} is given, expected at least one")
        return self.of(kind)

    def one(self, kind: str) -> Path:
        """Return the only file of a kind."""
        found = self.some(kind)
        if len(found) > 1:
            raise UsageError(f"{self._step}: {len(found)} files are {kind}, expected one")
        return found[0]


def _word(kind: str) -> str:
    return _WORDS.get(kind, kind)


class StepInputs:
    """Checks the exposures of a step, names its products, and makes the context that it runs in.

    Parameters
    ----------
    run : Run
    step : str
    names : Association, optional
        Names the product, and gives the identifier in names. Default: the names of the files.
    product_name : str, optional
        Default: that of the association, else the standard one.
    """

    def __init__(
        self, run: Run, step: str, names: Association | None = None, product_name: str | None = None
    ):
        self.run, self._step, self._names, self._product_name = run, step, names, product_name

    def read(self, science: Sequence[Path], references: Sequence[Path] = ()) -> ProductInputs:
        """Read all but the pixels of exposures, and check that they can be used together.

        Raises
        ------
        GpucoronError
            As for the members of an association.
        """
        from gpucoron.io.association import Association, Member, Product
        from gpucoron.io.inspection import inspect_members

        members = [Member(path, "science", path.name) for path in science]
        members += [Member(path, "psf", path.name) for path in references]
        association = self._names or Association(members[0].path, "", None, "", None, None, ())
        association = replace(association, products=(Product(None, tuple(members)),))
        with self.run.timed("read"):
            association, exposures = inspect_members(association, self._needs())
        (product,) = association.products
        targets, stars = (
            [self._renamed(exposures[m.path, m.exptype]) for m in chosen]
            for chosen in (product.science, product.psf)
        )
        if targets:
            check_given_star(self.run.parameters, targets)
        name = self._named(association, [*targets, *stars])
        return ProductInputs(name, association, product, targets, stars, ())

    def _needs(self) -> Any:
        from gpucoron.io.inspection import Requirements

        needs = Requirements.of(self.run.parameters, self.run.options.checksums)
        if self._step != "outlier_detection":  # which makes a pixel bad where an error is NaN
            needs = replace(needs, nan_spoils=False)
        if self._step == "resample":
            return replace(needs, values=False, pixels=False)
        return replace(needs, grid=None, times=False)

    def _renamed(self, exposure: Exposure) -> Exposure:
        """Return an exposure whose root does not end in the association's identifier."""
        if self._names is None:
            return exposure
        return replace(exposure, root=exposure.root.removesuffix(f"_{self._names.asn_id}"))

    def _named(self, association: Association, exposures: Sequence[Exposure]) -> str:
        """Return the product's name."""
        from gpucoron.io.names import exposure_root
        from gpucoron.io.product_naming import standard_product_name

        if self._product_name:
            return self._product_name
        roots = {exposure.root for exposure in exposures}
        for product in self._names.products if self._names else ():
            members = {exposure_root(member.path) for member in product.members}
            if product.name and any(root.startswith(tuple(members)) for root in roots):
                return product.name
        named = replace(association, asn_id=association.asn_id or _STANDARD_ID)
        return standard_product_name(named, exposures[0].meta)

    def psfmask(self, own: ProductInputs) -> Psfmask:
        """Return the psfmask of a step that aligns or fills science exposures."""
        with self.run.timed("read"):
            inputs = RunInputs(own.association, (own.name,), (own,))
            return read_masks(self.run.options, inputs)[0]

    def context(
        self, own: ProductInputs, plan: Plan | None = None, psfmask: Psfmask | None = None
    ) -> ProductContext:
        """Return the context of a product; its device must be known.

        Without `psfmask` it is all ones, for steps that do not use it.
        """
        exposures = [*own.science, *own.references]
        shape = exposures[0].shape[1:]
        if psfmask is None:
            psfmask = Psfmask(np.ones(shape), "N/A", "not used")
        plan = plan or Plan(own.name, 0, 0, (), shape, None, 1, 0, 0, 0, 0, 0.0)
        product = ProductContext(self.run, own, plan, psfmask)
        provenance = product.provenance
        values = {
            name: value
            for name, value in provenance.parameters.items()
            if "." not in name or name.startswith(f"{self._step}.")
        }
        for step, keyword in _BEFORE.get(self._step, {}).items():
            found = {str(e.primary_header.get(keyword)).strip() for e in exposures}
            values[f"{step}.skip"] = found != {"COMPLETE"}
        product.provenance = replace(
            provenance, parameters=values, asn_table=own.association.table_name or None
        )
        return product

    def check_outputs(self, planned: Sequence[Path], read: Iterable[Path]) -> None:
        """Make sure that products can be written, each under a name of its own.

        Raises
        ------
        OutputError, ExposureError
            They cannot be written, or two would have one name.
        """
        from gpucoron.io.products import preflight

        options, names = self.run.options, [path.name for path in planned]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ExposureError(
                f"{twice[0]} would be made of {names.count(twice[0])} files, expected files that "
                "differ in their names"
            )
        preflight(options.folder, names, options.overwrite, [*read, *options.protected])
