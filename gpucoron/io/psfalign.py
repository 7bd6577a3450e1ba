"""psfalign, written plane by plane: references aligned to each science integration."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from astropy.io.fits import Header

from gpucoron.errors import InputError, OutputError
from gpucoron.io.files import (
    check_replaceable,
    create_partial,
    fsync,
    output_error,
    pwrite,
    start_writeback,
)
from gpucoron.io.fits.checksums import fold, summed_header
from gpucoron.io.fits.headers import add_history, quiet, set_keyword
from gpucoron.io.fits.walk import BLOCK
from gpucoron.io.fits.writing import UNSIGNED_ZERO, Hdu, hdu_header, stored_words, write_hdu
from gpucoron.io.positions import POSITION_UNITS, positions_hdu
from gpucoron.io.product_headers import Provenance, asdf_hdu, product_hdus, set_times
from gpucoron.io.star import STAR_KEYWORDS, set_star

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpucoron.core.star import StarPositions
    from gpucoron.io.exposures import Exposure

__all__ = ["PsfalignWriter"]

_CHUNK = 1 << 20  # bytes of one write of a constant
_NAN = np.float32(np.nan).view(np.uint32)
_ALIGN_TEXT = (
    "A row for each pair of science integration and reference plane (third",
    "axis of SCI), counted from 1. x, y: the shift that lays the science",
    "image onto the reference, so the reference was moved by (-x, -y). beta:",
    "the factor that scales the science image to the reference, fitted and",
    "not applied. _err: standard deviations. residual: rms of the masked",
    "residual. status: 0 good, 1 not converged, 2 image left out, 3",
    "inconsistent: converged, but contradicts the images or other fits, 4 not",
    "registered: from other images of the exposure, or from the headers. If",
    "there is a table POSITIONS, x and y are differences of its positions.",
)


class PsfalignWriter:
    """Writes a psfalign file whose planes come in any order, a batch in memory at a time.

    Metadata and WCS are those of the first of `exposures`, the references; times and integration
    counts are those of all (preset "jwst": the first one's, too).

    A context manager: leaving the block without `close`, by an exception or not, leaves nothing
    behind. `write` may be called from several threads.

    Parameters
    ----------
    path : path
        The file has that name only after `close`.
    exposures : sequence of Exposure
    shape : (nref, ny, nx) or (nsci, nref, ny, nx)
        Of SCI: 3-D where all integrations share one alignment, else 4-D.
    provenance : Provenance
    overwrite : bool
        Whether a file of that name may be replaced.

    Raises
    ------
    OutputError
        The file exists and must not be replaced, the disk has not room enough, or writing fails.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        exposures: Sequence[Exposure],
        shape: tuple[int, ...],
        provenance: Provenance,
        *,
        overwrite: bool = True,
    ):
        if len(shape) not in (3, 4) or min(shape) < 1:
            raise InputError(
                f"psfalign has shape {shape}, expected (nref, ny, nx) or (nsci, nref, ny, nx)"
            )
        self.path, self.shape, self._overwrite = Path(path), tuple(shape), overwrite
        self._exposures, self._provenance = exposures, provenance
        check_replaceable(self.path, overwrite)
        self._lock = threading.Lock()
        self._done = np.zeros(shape[:-2], dtype=bool).reshape(-1, shape[-3])
        self._sums = {"SCI": 0, "ERR": 0, "DQ": 0}
        self._over, self._writing = False, 0
        try:
            self._file = create_partial(self.path, "x+b")
            self._partial = Path(self._file.name)
        except OSError as problem:
            raise output_error(self.path, problem) from problem
        with self._or_nothing():
            self._lay_out()

    @contextmanager
    def _or_nothing(self):
        """Leave nothing behind if a block fails, and say in one line why it did."""
        try:
            yield
        except BaseException as problem:
            self.abort()
            if isinstance(problem, OSError) and not isinstance(problem, OutputError):
                raise output_error(self.path, problem) from problem
            raise

    # ---- layout

    def _lay_out(self):
        """Fix where everything goes and give the file its size."""
        self._hdus = self._make_hdus()
        self._checksums = {"PRIMARY": write_hdu(self._file, self._hdus[0])}
        place = self._file.tell()
        self._size = 4 * int(np.prod(self.shape, dtype=np.int64))
        self._starts: dict[str, tuple[int, int]] = {}  # of header and data
        self._headers: dict[str, Header] = {}
        for hdu in self._hdus[1:]:
            self._headers[hdu.name] = hdu_header(hdu)
            if hdu.name == "SCI":
                self._keep_room(self._headers["SCI"])
            header = self._summed(hdu.name)
            self._starts[hdu.name] = (place, place + len(header))
            place += len(header) + -(-self._size // BLOCK) * BLOCK
        self._end = place
        free = shutil.disk_usage(self.path.parent).free
        if free < place:
            raise OutputError(
                f"cannot write {self.path}: it takes {place / 2**30:.2f} GiB, "
                f"and the disk has {free / 2**30:.2f} GiB free"
            )
        self._file.flush()
        os.ftruncate(self._file.fileno(), self._end)

    def _make_hdus(self):
        """Return PRIMARY, SCI, ERR and DQ; one value stands for all of an array."""
        provenance = self._provenance
        kinds = {"SCI": ">f4", "ERR": ">f4", "DQ": ">u4"}
        hdus = product_hdus(
            self.path,
            self._exposures[0],
            {k: np.broadcast_to(np.zeros((), kind), self.shape) for k, kind in kinds.items()},
            provenance,
            ["outlier_detection", "stack_refs", "align_refs"],
            provenance.inputs,
            "CubeModel" if len(self.shape) == 3 else "QuadModel",
        )
        if provenance.psfmask:
            section = "PSF mask reference file information"
            mask, comment = provenance.psfmask, "psfmask of the fit"
            set_keyword(hdus[0].header, "R_PSFMAS", mask, comment, section=section)
        set_times(hdus, self._exposures, self.shape[-3], provenance)
        return hdus

    def _summed(self, name):
        with quiet():
            return summed_header(self._headers[name], fold(self._sums[name]))

    def _keep_room(self, header):
        """Put cards where the star's keywords go, which are known when the file is closed."""
        if not self._provenance.like_jwst:
            for keyword, comment in STAR_KEYWORDS.items():
                header.remove(keyword, ignore_missing=True, remove_all=True)
                header.append((keyword, 0.0, comment), end=True)

    def _set_star(self, header, star):
        """Put the star's keywords into the room kept for them, and blank cards into the rest."""
        if not self._provenance.like_jwst:
            cards = len(header)
            for keyword in STAR_KEYWORDS:
                header.remove(keyword)
            set_star(header, star)
            for _ in range(cards - len(header)):
                header.append(("", ""), useblanks=False, end=True)

    # ---- planes

    def write(
        self,
        sci_index: int,
        data: np.ndarray,
        err: np.ndarray | None,
        ref_index: int = 0,
        dq: np.ndarray | None = None,
    ) -> None:
        """Write aligned references of one science integration.

        Parameters
        ----------
        sci_index, ref_index : int
            Science integration (0 for a 3-D product) and first reference, counted from 0.
        data, err : (n, ny, nx) floating array, MJy/sr
            Aligned images and their errors; `err` may be None, which is written as NaN.
        dq : (n, ny, nx) uint32, optional
            Their flags. Default: all zero.

        Raises
        ------
        OutputError
            Writing failed; the file is gone.
        InputError
            Planes that do not fit, or that were written before.
        """
        n = self._claim(sci_index, data, (err, dq), ref_index)
        try:
            with self._or_nothing():
                self._write_planes(sci_index, ref_index, n, data, err, dq)
        finally:
            with self._lock:
                self._writing -= 1
            if self._over:
                self._let_go()

    def _write_planes(self, sci_index, ref_index, n, data, err, dq):
        first = sci_index * self.shape[-3] + ref_index
        plane = 4 * self.shape[-1] * self.shape[-2]
        places = {name: start + first * plane for name, (_, start) in self._starts.items()}
        size = n * plane
        sums = {
            "SCI": self._put(places["SCI"], data),
            "ERR": self._put(places["ERR"], err)
            if err is not None
            else self._fill(places["ERR"], size, _NAN),
            "DQ": self._put(places["DQ"], dq)
            if dq is not None
            else self._fill(places["DQ"], size, UNSIGNED_ZERO),
        }
        for place in places.values():
            start_writeback(self._file, place, size)
        with self._lock:
            for name, total in sums.items():
                self._sums[name] += total

    def _claim(self, sci_index, data, others, ref_index):
        """Check a batch and mark its planes as written; return how many there are."""
        n_sci, n_ref = self._done.shape
        n = data.shape[0]
        fits = (
            data.shape[1:] == self.shape[-2:]
            and all(array is None or array.shape == data.shape for array in others)
            and 0 <= sci_index < n_sci
            and 0 <= ref_index
            and ref_index + n <= n_ref
        )
        if not fits:
            raise InputError(
                f"aligned images of shape {data.shape} for science integration "
                f"{sci_index}, references from {ref_index}, do not fit {self.shape}"
            )
        with self._lock:
            if self._over:
                raise InputError(f"{self.path} is closed, expected no more planes")
            planes = self._done[sci_index, ref_index : ref_index + n]
            if planes.any():
                raise InputError(
                    f"aligned images of science integration {sci_index} were "
                    "written before, expected each once"
                )
            planes[:] = True
            self._writing += 1
        return n

    def _put(self, offset, values):
        """Write values as big-endian words of 32 bits; return the sum of the words."""
        total, fd = 0, self._file.fileno()
        for words in stored_words(values):
            total += int(words.sum(dtype=np.uint64))
            offset = _write_at(fd, words.byteswap().data.cast("B"), offset)
        return total

    def _fill(self, offset, size, word):
        """Write one 32-bit word over and over; return the sum of the words."""
        chunk = np.full(min(_CHUNK, size) // 4, word, dtype=">u4").tobytes()
        end, fd = offset + size, self._file.fileno()
        while offset < end:
            offset = _write_at(fd, memoryview(chunk)[: end - offset], offset)
        return size // 4 * int(word)

    # ---- the end

    def close(
        self,
        fits_table: np.ndarray | None = None,
        positions: np.ndarray | None = None,
        star: StarPositions | None = None,
    ) -> dict[str, str]:
        """Complete the file and give it its name; return CHECKSUM of every HDU by name.

        `fits_table` has the fits of `gpucoron.steps.align_refs`, a row a pair; it becomes ALIGN.
        `positions` has those of all images (`gpucoron.steps.positions.POSITIONS_DTYPE`), and
        becomes POSITIONS.
        `star` is where the star is in the science exposure, and so in the aligned references; the
        header of SCI says it (preset "jwst": it does not).

        Raises
        ------
        OutputError
            Planes are missing, or writing failed; the file is gone.
        """
        if self._over:
            raise InputError(f"{self.path} is closed already")
        with self._or_nothing():
            missing = int((~self._done).sum())
            if missing:
                raise OutputError(
                    f"cannot write {self.path}: {missing} of {self._done.size} aligned images "
                    "were never computed"
                )
            self._set_star(self._headers["SCI"], star)
            self._finish(fits_table, positions)
            check_replaceable(self.path, self._overwrite)
            os.replace(self._partial, self.path)
        return self._checksums

    def _finish(self, fits_table, positions):
        for name, (place, _) in self._starts.items():
            _write_at(self._file.fileno(), memoryview(self._summed(name)), place)
            self._checksums[name] = self._headers[name]["CHECKSUM"]
        self._file.seek(self._end)
        last = []
        if fits_table is not None:
            last.append(self._align_hdu(fits_table))
        if positions is not None:
            last.append(positions_hdu(positions))
        last.append(asdf_hdu(self._exposures[0].asdf_bytes, self._hdus))
        for hdu in last:
            self._checksums[hdu.name] = write_hdu(self._file, hdu)
        fsync(self._file)
        self._over = True
        self._file.close()

    def _align_hdu(self, table):
        header = Header()
        add_history(header, _ALIGN_TEXT, "COMMENT")
        unit = self._exposures[0].meta.bunit
        units = POSITION_UNITS | ({"residual": unit} if unit else {})
        return Hdu("ALIGN", table, header, units)

    def abort(self) -> None:
        """Give up: leave nothing behind. Does nothing after `close`."""
        self._over = True
        self._let_go()
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def _let_go(self):
        """Close the file unless another thread is writing to it; that one then does."""
        with self._lock:
            if not self._writing:
                with suppress(OSError):
                    self._file.close()

    def __enter__(self) -> PsfalignWriter:
        return self

    def __exit__(self, *exception) -> None:
        self.abort()


def _write_at(fd, data, offset):
    """Write all of `data` at `offset`; return where it ends."""
    while len(data):
        n = pwrite(fd, data, offset)
        data, offset = data[n:], offset + n
    return offset
