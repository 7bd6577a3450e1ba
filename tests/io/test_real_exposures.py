"""Real exposures are read as they are."""

import numpy as np
from astropy.io import fits

from gpucoron import io
from gpucoron.io.agreement import check_members


def test_aumic_with_its_quirks(shared_data):
    folder = shared_data / "aumic_f444w"
    asn = io.read_association(folder / "jw01184-c1001_coron3_asn.json")
    exposures = [io.read_exposure(m.path, m.exptype) for m in asn.products[0].members]
    check_members(exposures)
    for exposure in exposures:
        stack = exposure.stack
        assert stack.shape == (1, 320, 320) and stack.err.dtype == np.float32  # float64 there
        assert stack.var_poisson is stack.var_rnoise is stack.var_flat is None  # empty HDUs
        assert len(exposure.int_times) > 1 and exposure.asdf_bytes.startswith(b"#ASDF 1.")
        edge = np.isnan(stack.data)
        assert edge.any() and not (stack.dq[edge] & 1).all()  # NaN that no flag marks
    assert len(exposures[0].int_times) == 35


def test_real_files_read_as_astropy_reads_them(shared_data):
    for path in sorted(shared_data.glob("*/*_calints.fits"))[::4]:
        exposure = io.read_exposure(path, "science")
        with fits.open(path, memmap=False) as opened:
            np.testing.assert_array_equal(exposure.stack.data, opened["SCI"].data)
            np.testing.assert_array_equal(exposure.stack.err, opened["ERR"].data.astype("f4"))
            np.testing.assert_array_equal(exposure.stack.dq, opened["DQ"].data)
            table = opened["INT_TIMES"].data
            for name in exposure.int_times.dtype.names:
                np.testing.assert_array_equal(exposure.int_times[name], table[name])
            assert exposure.asdf_bytes == opened["ASDF"].data.tobytes()
            assert exposure.primary_header == opened[0].header
            assert exposure.headers["SCI"] == opened["SCI"].header
