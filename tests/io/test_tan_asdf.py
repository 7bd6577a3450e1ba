"""The GWCS of i2d that is written without asdf, against what asdf writes."""

import dataclasses
import io
import subprocess
import sys
import warnings

import asdf
import numpy as np
import pytest

from gpucoron.io.asdf_tree import asdf_blob, wcs_blob
from gpucoron.io.tan import OutputWcs
from gpucoron.io.tan_asdf import tan_blob

PLANE = OutputWcs(
    (90, 120), (60.3, 41.7), (150.2, -30.4), (1.7e-5, 1.7e-5), ((-0.8, 0.6), (0.6, 0.8)), 0.0612
)
PLANES = [
    PLANE,
    dataclasses.replace(PLANE, bounding_box=((1e-17, 1e22), (-1e-5, 33))),
    dataclasses.replace(PLANE, crval=(0.0, 90.0), shape=(np.int64(3), np.int64(2))),
]


def parts(blob):
    """The text of the WCS, its arrays by name, and pixel_shape; order of entries does not count."""
    with asdf.open(io.BytesIO(blob), memmap=False, _force_raw_types=True) as file:

        def plain(node):
            if isinstance(node, dict) and "source" in node:
                return np.asarray(file._blocks.blocks[node["source"]].data).tobytes(), node["shape"]
            if isinstance(node, dict):
                return getattr(node, "_tag", None), {k: plain(v) for k, v in node.items()}
            if isinstance(node, list):
                return getattr(node, "_tag", None), [plain(v) for v in node]
            return getattr(node, "_tag", None), str(node)

        return plain(file.tree["meta"]["wcs"])


@pytest.mark.parametrize("plane", PLANES)
def test_same_as_asdf_writes(plane):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with asdf.open(io.BytesIO(tan_blob(plane)), memmap=False) as file:
            file.validate()
            ours = file["meta"]["wcs"]
            wanted = plane.to_gwcs()
            assert type(ours.forward_transform) is type(wanted.forward_transform)
            for name in ("crpix", "crval", "cdelt", "pc"):
                np.testing.assert_array_equal(
                    getattr(ours.forward_transform, name).value,
                    getattr(wanted.forward_transform, name).value,
                )
            assert ours.pixel_shape == wanted.pixel_shape
            assert ours.bounding_box.bounding_box(order="F") == wanted.bounding_box.bounding_box(
                order="F"
            )
            assert ours.available_frames == wanted.available_frames
            for name in ("input_frame", "output_frame"):
                assert repr(getattr(ours, name)) == repr(getattr(wanted, name))
            x, y = np.linspace(0, 3, 4), np.linspace(-1, 2, 4)
            np.testing.assert_array_equal(ours(x, y), wanted(x, y))


def test_same_tree_as_asdf_writes():
    theirs = wcs_blob(PLANE.to_gwcs())
    if b"gwcs/wcs-1.4.0" not in theirs or b"#ASDF_STANDARD 1.6.0" not in theirs:
        pytest.skip("the installed gwcs writes other versions of the tags")
    assert parts(tan_blob(PLANE)) == parts(theirs)
    assert parts(asdf_blob(tan_blob(PLANE), (), {"telescope": "JWST"})) == parts(theirs)


def test_writes_without_asdf():
    code = (
        "import sys; from gpucoron.io.tan import OutputWcs;"
        "from gpucoron.io.tan_asdf import tan_blob;"
        "tan_blob(OutputWcs((9, 8), (1, 2), (3, 4), (1, 1), ((1, 0), (0, 1)), 1.0));"
        "print([m for m in ('asdf', 'gwcs', 'astropy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
