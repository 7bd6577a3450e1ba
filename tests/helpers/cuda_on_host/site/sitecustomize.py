"""On PYTHONPATH: GPUCORON_EMULATED=2 gives a process two emulated GPUs."""

import os

if os.environ.get("GPUCORON_EMULATED"):
    from tests.helpers import device_fixture

    _emulated = device_fixture.emulated(devices=int(os.environ["GPUCORON_EMULATED"]))
    _emulated.__enter__()  # until the process ends
