"""The inputs of a run: an association whose members have been checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gpucoron.backend.logs import Progress, no_progress
from gpucoron.errors import ExposureError
from gpucoron.pipeline.exclusion import check_exclusions, check_what_is_left
from gpucoron.pipeline.expected_star import check_given_star
from gpucoron.pipeline.off_axis_psf import given_psf
from gpucoron.pipeline.references import References, choose_psf_members, choose_references
from gpucoron.pipeline.star_flux import given_star_flux
from gpucoron.pipeline.star_model import load_star_model
from gpucoron.pipeline.zones import check_zones

if TYPE_CHECKING:
    import numpy as np

    from gpucoron.analysis.forward import OffAxisImages
    from gpucoron.core.star_flux import StarFlux
    from gpucoron.io.association import Association, Product
    from gpucoron.io.exposures import Exposure
    from gpucoron.io.given_association import GivenAssociation
    from gpucoron.io.inspection import Exposures
    from gpucoron.optics.star_images import StarImages
    from gpucoron.pipeline.disk_model import DiskModel
    from gpucoron.pipeline.run_options import RunOptions


@dataclass(frozen=True)
class ProductInputs:
    """One product of an association and its exposures, their pixels not yet read."""

    name: str
    association: Association
    product: Product
    science: list[Exposure]
    references: list[Exposure]  # psf members
    truncations: tuple[int, ...]  # numbers of KL modes that are used
    star_model: StarImages | None = None
    star_flux: StarFlux | None = None  # as it is given
    chosen: References = References("rdi")  # beside psf members
    psf: OffAxisImages | None = None  # of an off-axis source, as it is given
    disk_model: DiskModel | None = None  # that is left out of the fits

    @property
    def mode(self) -> str:
        """The mode that is used: one of `gpucoron.core.parameters.MODES`."""
        return self.chosen.mode

    @property
    def uses_rolls(self) -> bool:
        """Whether science exposures are references of each other."""
        return any(self.chosen.rolls.values())

    def roll_counts(self, exposure: Exposure) -> list[int]:
        """Return the integrations of the rolls that are references of a science exposure."""
        return [roll.shape[0] for roll in self.chosen.rolls.get(exposure.root, ())]

    def references_of(self, exposure: Exposure) -> list[Exposure]:
        """Return the references of a science exposure, psf members first."""
        return [*self.references, *self.chosen.rolls.get(exposure.root, ())]


@dataclass(frozen=True)
class RunInputs:
    """An association, the names of its products, and their exposures."""

    association: Association
    names: tuple[str, ...]
    products: tuple[ProductInputs, ...]

    def members(self) -> Iterator[Path]:
        """Yield the file of every member that is used."""
        for product in self.association.products:
            yield from (m.path for m in (*product.psf, *product.science))

    def files(self, options: RunOptions) -> list[Path]:
        """Return every file that will be read, but a psfmask that CRDS finds."""
        parameters = options.parameters
        given = (
            options.psfmask,
            parameters.align_refs.star_model,
            parameters.analysis.star_spectrum,
            parameters.analysis.filter_curve,
            parameters.analysis.psf,
            parameters.klip.subtract_model,
            parameters.resample.output_wcs,
        )
        others = (Path(path) for path in given if path)
        table = [self.association.path] if self.association.in_file else []
        return list(dict.fromkeys([*table, *others, *self.members()]))


class Psfmask(NamedTuple):
    """A psfmask, its name for the keyword R_PSFMAS, and where it came from, in words."""

    mask: np.ndarray  # (ny, nx) float64
    name: str
    how: str


def read_masks(options: RunOptions, inputs: RunInputs) -> list[Psfmask]:
    """Return the psfmask of every product.

    Raises
    ------
    MaskError
        One cannot be used.
    ParameterError
        Excluded regions cover nearly all that one leaves.
    """
    from gpucoron.io.psfmask import find_psfmask

    masks, aligning = [], options.parameters.align_refs
    for own in inputs.products:
        found = Psfmask(
            *find_psfmask(
                options.psfmask,
                own.science[0],
                options.checksums,
                star=next(iter(aligning.stars), None),
                center=aligning.psfmask_center,
            )
        )
        if options.psfmask_name is not None:
            name = options.psfmask_name
            how = found.how.replace(f"given: {options.psfmask}", f"given: {name}")
            found = found._replace(name=name, how=how)
        check_what_is_left(options.parameters, own.science, found.mask)
        masks.append(found)
    return masks


def read_inputs(
    options: RunOptions, progress: Progress = no_progress, pixels: bool = True
) -> RunInputs:
    """Read an association, check its members, and name its products.

    With `pixels` each member must have usable pixels. An association or member that cannot be used
    raises InputError.
    """
    from gpucoron.io.association import read_association
    from gpucoron.io.inspection import Requirements, inspect_members
    from gpucoron.io.product_naming import product_names
    from gpucoron.pipeline.disk_model import DiskModel

    if options.given is None:
        listed = read_association(
            options.asn,
            check_files=not options.skip_bad,
            need_references=options.parameters.klip.mode == "rdi",
        )
    else:
        listed = options.given.association
    association, exposures = inspect_members(
        choose_psf_members(options.parameters, listed),
        Requirements.of(options.parameters, options.checksums, pixels),
        skip_bad=options.skip_bad,
        progress=lambda *state: progress("read", *state),
    )
    if options.given is not None:
        exposures = _with_given_images(exposures, options.given)
    found = [
        [[exposures[m.path, m.exptype] for m in members] for members in (p.science, p.psf)]
        for p in association.products
    ]
    names = product_names(association, [science[0].meta for science, _ in found])
    for science, _ in found:
        check_given_star(options.parameters, science)
        check_exclusions(options.parameters, science)
    all_science = [exposure for science, _ in found for exposure in science]
    star_model = load_star_model(options.parameters, all_science, options.checksums)
    psf_given = options.parameters.analysis.psf if options.psf is None else options.psf
    products = []
    for name, product, as_listed, (science, psf) in zip(
        names, association.products, listed.products, found, strict=True
    ):
        chosen = choose_references(options.parameters, as_listed, science, psf)
        klip = replace(options.parameters.klip, mode=chosen.mode)
        truncations = klip.truncations(
            *([e.shape[0] for e in (*psf, *chosen.rolls.get(own.root, ()))] for own in science)
        )
        check_zones(options.parameters, science, truncations)
        off_axis = given_psf(psf_given, science[0], options.checksums)
        products.append(
            ProductInputs(
                name,
                association,
                product,
                science,
                psf,
                truncations,
                star_model,
                given_star_flux(options.parameters, science[0]),
                chosen,
                off_axis,
                DiskModel.of(options.parameters, science, off_axis, options.checksums),
            )
        )
    return RunInputs(association, names, tuple(products))


def _with_given_images(exposures: Exposures, given: GivenAssociation) -> Exposures:
    """Return the exposures with the images that the caller has in memory."""
    changed = {}
    for (path, exptype), exposure in exposures.items():
        stack = given.stacks.get(path)
        if stack is not None and stack.shape != exposure.shape:
            raise ExposureError(
                f"{path}: the images in memory have shape {stack.shape}, but SCI in the file has "
                f"{exposure.shape}"
            )
        changed[path, exptype] = exposure if stack is None else replace(exposure, stack=stack)
    return changed
