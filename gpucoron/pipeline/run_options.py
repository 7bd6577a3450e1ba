"""Settings of a run, shared by library, command line and cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.backend.device import Device, memory
from gpucoron.core.parameters import Parameters
from gpucoron.core.products import PRODUCTS
from gpucoron.errors import ParameterError, UsageError

if TYPE_CHECKING:
    from gpucoron.io.given_association import GivenAssociation

#: Share of the free memory that a run may use unless told.
SHARE = 0.5
_UNITS = {"": 1} | {
    f"{letter}{binary}": base**power
    for power, letter in enumerate("kmgt", 1)
    for binary, base in (("", 1000), ("i", 1024))
}
_LARGEST_SIZE = 1 << 60  # bytes
DEFAULT_SAVE = frozenset(PRODUCTS) - {"median"}


@dataclass(frozen=True)
class RunOptions:
    """Settings of a run, validated; those without a comment are as for `gpucoron.run`.

    Raises
    ------
    ParameterError, UsageError
        Settings that do not go together, or a product that does not exist.
    """

    asn: Path
    parameters: Parameters = field(default_factory=Parameters)
    device: str | int | Device = "auto"
    output_dir: Path | None = None
    save: frozenset[str] = DEFAULT_SAVE
    keep: frozenset[str] = frozenset()
    psfmask: str | PathLike | None = None
    psfmask_name: str | None = None  # what products call it, where that is not `psfmask`
    overwrite: bool = True
    skip_bad: bool = False
    checksums: bool = True
    resume: bool = False
    threads: int | None = None
    memory: int | str | None = None
    memory_limit: int | None = None  # bytes at which a Dask nanny ends this process
    forward_model: bool = False  # keep what tells how a source would look in the products
    psf: Any = None  # of an off-axis source, that is not a file: see `given_psf`
    contrast: bool = False  # measure the contrast, and write it where products are written
    report: str | PathLike | None = None  # where the caller will write the report
    given: GivenAssociation | None = None  # instead of the file `asn`
    protected: tuple[str | PathLike, ...] = ()  # more that is not replaced: parameter files, logs

    def __post_init__(self):
        for name in ("save", "keep"):
            unknown = sorted(getattr(self, name) - set(PRODUCTS))
            if unknown:
                raise UsageError(
                    f"{name} holds {unknown[0]!r}; expected some of {', '.join(PRODUCTS)}"
                )
        if self.parameters.stack_refs.skip:
            raise ParameterError("stack_refs.skip is true, but klip needs the stacked references")
        if self.resume and self.output_dir is None:
            raise UsageError("resume needs an output folder")
        if self.resume and self.given is not None:
            raise UsageError("resume needs the association as a file, not as a dict or a list")
        if self.resume and not self.overwrite:
            raise UsageError("resume needs overwriting")

    @property
    def keeps_forward_model(self) -> bool:
        """Whether the forward model of a source is made."""
        return self.forward_model or self.contrast

    @property
    def folder(self) -> Path:
        """Where products are written, in a run that writes some."""
        if self.output_dir is None:
            raise UsageError("no output folder is given")
        return self.output_dir

    def budget(self) -> int:
        """Return the bytes that the run may use."""
        if self.memory is not None:
            return parse_size(self.memory)
        return int(SHARE * self.free_memory())

    def free_memory(self) -> int:
        """Return the bytes that are free on this machine, for this process."""
        free = memory()[1]
        return free if self.memory_limit is None else min(free, self.memory_limit)


def parse_size(text: str | int | float) -> int:
    """Convert "4GiB", "500 MB" or a number to bytes.

    Raises
    ------
    UsageError
        It is none of these, not above 0, or more than any machine has.
    """
    found: Any = re.fullmatch(
        r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?)b?\s*", str(text), re.IGNORECASE
    )
    try:
        size = int(float(found[1]) * _UNITS[found[2].lower()])
    except (TypeError, ValueError, KeyError, OverflowError):
        size = 0
    if not 0 < size <= _LARGEST_SIZE:
        raise UsageError(f"memory is {text!r}, expected a size such as 4GiB or 500MB")
    return size
