"""The emulated devices: as many as were asked for."""

import pytest

from gpucoron.backend.transfer import CudaBackend
from tests.helpers import device_fixture

pytestmark = pytest.mark.parametrize("device", ["host-forward"], indirect=True)


def test_there_are_as_many_devices_as_were_asked_for(device):
    cp = device.cupy
    for count in (1, 2, 3):
        device.have(count)
        assert cp.cuda.runtime.getDeviceCount() == count
        with cp.cuda.Device(count - 1):
            assert cp.ones(3).device.id == count - 1
        calls = cp.cuda.runtime.setDevice, cp.cuda.runtime.getDeviceProperties, CudaBackend
        for refused in (*calls, lambda n: cp.cuda.Device(n).use()):
            with pytest.raises(Exception, match="cudaErrorInvalidDevice"):
                refused(count)
    for settings in ({"devices": 2}, {}):
        with device_fixture.emulated(**settings) as made:
            assert made.cupy.cuda.runtime.getDeviceCount() == settings.get("devices", 1)
