"""The PNG files of the report, and what is where in them."""

import struct
import zlib

import numpy as np
import pytest

from gpucoron.report import pictures


def test_png_can_be_read_again():
    indices = np.arange(256, dtype=np.uint8).reshape(8, 32)
    data = pictures.png(indices, "viridis")
    chunks, at = {}, 8
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        chunks[name] = data[at + 8 : at + 8 + size]
        assert (
            zlib.crc32(name + chunks[name])
            == struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0]
        )
        at += 12 + size
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(8, 33)
    np.testing.assert_array_equal(rows[:, 1:], indices)
    assert chunks[b"tRNS"] == bytes([255] * 255 + [0])


def test_colours_are_matplotlibs():
    matplotlib = pytest.importorskip("matplotlib")
    for name in pictures.PALETTES:
        theirs = 255 * np.array(matplotlib.colormaps[name].colors)
        ours = pictures._colours(name)[:255].astype(float)
        assert np.abs(ours - theirs[np.rint(np.linspace(0, 255, 255)).astype(int)]).max() < 12


def test_the_way_up_and_the_place_of_a_pixel():
    frame = pictures.Frame((10, 20, 34, 32))
    assert frame.scale == 20 and frame.height == 240
    assert frame.place(10, 20) == (10, 230) and frame.place(33, 31) == (470, 10)
