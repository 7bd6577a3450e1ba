"""Exposures and masks whose headers lie: refused in one line, or read, and then written whole."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given

from gpucoron.core.star import StarPositions
from gpucoron.io.asdf.extension import asdf_extension
from gpucoron.io.blend import blend, count_pointings, header_table, product_times
from gpucoron.io.exposure_wcs import settle_wcs
from gpucoron.io.exposures import read_exposure, read_meta
from gpucoron.io.product_headers import input_headers
from gpucoron.io.products import Provenance, write_crfints, write_psfstack
from gpucoron.io.psfmask import read_psfmask
from gpucoron.io.star import expected_star
from gpucoron.io.wcs import output_wcs, read_wcs
from gpucoron.pipeline.centering import Centering
from tests.fuzz.bounds import fuzz, refused_or, whole
from tests.fuzz.hostile_fits import files, originals
from tests.helpers.tiny_sets import SHAPE

PROVENANCE = Provenance("0", parameters={"klip.truncate": 3}, inputs=["a.fits"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a function, whose value hypothesis does not print."""
    place = tmp_path_factory.mktemp("fuzz")
    return lambda: place


@pytest.fixture(scope="module")
def read(folder):
    """As `folder`, for a good exposure."""
    path = folder() / "good_calints.fits"
    path.write_bytes(originals()[0])
    exposure = read_exposure(path, "science")
    return lambda: exposure


@given(content=files())
@fuzz(100)
def test_an_exposure(content, folder, read):
    place, good = folder(), read()
    path = place / "x_calints.fits"
    path.write_bytes(content)
    refused_or(read_meta, path)
    found = refused_or(read_exposure, path, "science", pixels=False)
    if found is None:
        assert refused_or(read_exposure, path, "science") is None
        return
    stack = refused_or(found.load)
    refused_or(_lay_out, good, found)
    refused_or(_combine_headers, good, found)
    if stack is not None:
        assert stack.data.shape == stack.err.shape == stack.dq.shape == found.shape
        refused_or(_write, place, found, stack)


def _lay_out(good, found):
    refused_or(settle_wcs, dataclasses.replace(found, asdf_bytes=None))
    found = settle_wcs(found)
    wcss = [read_wcs(e.asdf_bytes, e.path.name) for e in (found, good)]
    centering = _centering([found, good], wcss)
    layout = output_wcs(wcss, [found.meta, good.meta], [found.shape, good.shape])
    centering.in_image(layout)
    assert np.prod(layout.shape, dtype=float) < 1e8


def _centering(exposures, wcss):
    stars = []
    for exposure in exposures:
        place = expected_star(exposure)
        where = (np.nan, np.nan) if place is None else place[0]
        stars.append(StarPositions.constant(where, exposure.shape[0], np.nan, "wcs"))
    centering = Centering(exposures, stars, wcss, "wcs")
    centering.warn_of_differences([(*star.mean, 0.0) for star in stars])
    return centering


def _combine_headers(*exposures):
    for order in (exposures, exposures[::-1]):
        headers = [input_headers(e) for e in order]
        blend(headers)
        product_times(headers, 5)
        count_pointings(headers)
        header_table(headers)


def _write(place, exposure, stack):
    out = place / "out.fits"
    write_crfints(out, exposure, stack, PROVENANCE)
    whole(out)
    write_psfstack(out, [exposure], stack, PROVENANCE)
    whole(out)


@given(content=files(2))
@fuzz(60)
def test_a_psfmask(content, folder, read):
    place, good = folder(), read()
    path = place / "mask.fits"
    path.write_bytes(content)
    mask = refused_or(read_psfmask, path, SHAPE, good.meta)
    if mask is not None:
        assert mask.shape == SHAPE and np.isfinite(mask).all() and mask.min() >= 0


def test_asdf_is_kept(read):
    assert b"gwcs" in asdf_extension(read().asdf_bytes, [], {})
