"""Launches of kernels/bad_pixels.cu."""

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import listed_size
from gpucoron.ops.cuda.median import c_type, column_median

_WARPS = 4  # a block, one pixel each
_MOST_BLOCKS = 1024  # for lists whose length only the device knows
_SUM_BLOCKS, _SUMS = 64, 14  # partial sums of an integration


class Group:
    """The integrations `members` (on the host) of images (n, ny, nx) on the device."""

    def __init__(self, images, usable, members):
        cp = cuda.cupy()
        self.images, self.usable = cp.ascontiguousarray(images), cp.ascontiguousarray(usable)
        self.members = cp.asarray(members, np.int32)
        self.size, self.shape = len(members), images.shape[1:]
        self.n_pixels = np.int64(self.shape[0] * self.shape[1])
        self._type = c_type(images.dtype)
        self._member_index = self.members
        if (np.diff(members) == 1).all():
            self._member_index = slice(int(members[0]), int(members[-1]) + 1)  # a view, not a copy

    def median(self):
        """Median of the usable pixels."""
        return column_median(self.images[self._member_index], self.usable[self._member_index])

    def noise(self, err):
        """Standard deviation of the mean of the usable pixels."""
        out = cuda.cupy().empty(self.shape, np.float64)
        self._by_pixel(
            f"member_noise<{self._type}>",
            self._like_images(err),
            self.usable,
            self.members,
            np.int32(self.size),
            self.n_pixels,
            out,
            rows=1,
        )
        return out

    def changes(self, err, middle, terms):
        """How the integrations differ from their median, in units of `terms`."""
        blocks = min(-(-int(self.n_pixels) // 1024), _SUM_BLOCKS)
        partial = cuda.cupy().empty((self.size, blocks, _SUMS), np.float64)
        cuda.kernel("bad_pixels", f"change_sums<{self._type}>")(
            (blocks, self.size),
            (256,),
            (
                self.images,
                self._like_images(err),
                self.usable,
                middle,
                terms,
                self.members,
                self.n_pixels,
                partial,
            ),
        )
        changes = cuda.cupy().empty((self.size, 4), np.float64)
        cuda.kernel("bad_pixels", "solve_changes")(
            (-(-self.size // 128),),
            (128,),
            (partial, np.int32(blocks), np.int32(self.size), changes),
        )
        return changes

    def median_without(self, changes, terms):
        """Median of the usable pixels, of images less their changes."""
        still = cuda.cupy().empty((self.size, *self.shape), self.images.dtype)
        self._by_pixel(
            f"hold_still<{self._type}>",
            self.images,
            changes,
            terms,
            self.members,
            self.n_pixels,
            still,
        )
        return column_median(still, self.usable[self._member_index])

    def fill_from_median(self, out, todo, middle, half):
        """Fill pixels from `middle`, and from box medians where that is NaN."""
        self._by_listed(
            todo,
            f"fill_from_median<{self._type}>",
            (
                self.images,
                self.usable,
                middle,
                self.members,
                *map(np.int32, self.shape),
                np.int32(half),
            ),
            out,
        )

    def fill_by_kriging(self, out, todo, err, image, changes, correlation):
        """Fill pixels from their exposure's image, changed, and what surrounds them beyond it."""
        factors, terms = changes
        self._by_listed(
            todo,
            f"fill_pixels<{self._type}>",
            (
                self.images,
                self._like_images(err),
                self.usable,
                image,
                factors,
                terms,
                correlation,
                self.members,
                *map(np.int32, self.shape),
            ),
            out,
        )

    def _like_images(self, err):
        return cuda.cupy().ascontiguousarray(err, self.images.dtype)

    def _by_pixel(self, kernel, *args, rows=None):
        """Launch with a row of blocks for each integration."""
        blocks = -(-int(self.n_pixels) // 256)
        cuda.kernel("bad_pixels", kernel)((blocks, rows or self.size), (256,), args)

    def _by_listed(self, todo, kernel, args, out):
        """Launch with a warp for each pixel to be filled; how many these are nobody asks."""
        listed_size(self.images.shape)  # the numbers are those of the whole exposure
        cp = cuda.cupy()
        pixels = cp.empty(self.size * int(self.n_pixels), np.uint32)
        count = cp.zeros(1, np.uint32)
        self._by_pixel("list_pixels", todo, self.members, self.n_pixels, pixels, count)
        blocks = min(-(-pixels.size // _WARPS), _MOST_BLOCKS)
        cuda.kernel("bad_pixels", kernel)((blocks,), (32 * _WARPS,), (*args, pixels, count, out))


def fill_by_medians(out, images, usable, todo, members_of, half):
    """Fill groups in place: from their medians, and box medians where those are not known."""
    alone = [members for members in members_of if len(members) == 1]
    for members in members_of:
        if len(members) > 1:
            group = Group(images, usable, members)
            group.fill_from_median(out, todo, group.median(), half)
    if alone:  # nothing to take from others: all at once
        group = Group(images, usable, np.concatenate(alone))
        nothing = cuda.cupy().full(group.shape, np.nan, images.dtype)
        group.fill_from_median(out, todo, nothing, half)


def fill_by_kriging(out, images, usable, todo, members_of, err, exposures):
    """Fill groups in place: from their exposures' images, and each integration's surroundings."""
    for members, image, changes in zip(
        members_of, exposures.images, exposures.changes, strict=True
    ):
        if changes is None:
            cuda.cupy().copyto(out[members[0]], image, where=todo[members[0]])
        else:
            Group(images, usable, members).fill_by_kriging(
                out, todo, err, image, changes, exposures.correlation
            )


def boxes(image, usable, y, x, half):
    """Medians of the usable pixels in boxes round pixels (y, x) of an image."""
    cp = cuda.cupy()
    out = cp.empty(y.size, image.dtype)
    image, usable, y, x = map(cp.ascontiguousarray, (image, usable, y, x))
    if y.size:
        cuda.kernel("bad_pixels", f"box_medians<{c_type(image.dtype)}>")(
            (-(-y.size // _WARPS),),
            (32 * _WARPS,),
            (
                image,
                usable,
                *map(np.int32, image.shape),
                np.int32(half),
                np.int32(y.size),
                y,
                x,
                out,
            ),
        )
    return out
