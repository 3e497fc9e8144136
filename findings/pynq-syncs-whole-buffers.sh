#!/bin/sh
# PYNQ synchronises the whole of a buffer, whichever slice of it is flushed or invalidated.
#
# pynq 4.0.0, seen in November 2026 with Python 3.11 on Linux x86_64. `PynqBuffer.flush()` of a slice
# hands its offset and its size to the device, and the device of boards and cards (`XrtDevice`, of
# which `EmbeddedDevice` is one) drops both: it calls `bo.sync(direction)`, which is all of the buffer
# object. So `buffer[:64].flush()` costs as much as a flush of a buffer of a gigabyte, and
# `buffer[:64].invalidate()` also replaces what the processor wrote elsewhere in the buffer and has
# not flushed yet. pyxrt itself takes a size and an offset: `bo.sync(direction, size, offset)`.
#
# Around it: allocate what is synchronised at different times as buffers of their own, and flush every
# write before anything of the same buffer is invalidated. pyxrt is no package of PyPI; a stand-in
# records what it is asked for.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check 'pynq==4.0.0' 'numpy==1.26.4'
cat >slices.py <<'EOF'
import sys
import types
import warnings

import numpy as np

warnings.simplefilter("ignore")
pyxrt = types.ModuleType("pyxrt")
pyxrt.xclBOSyncDirection = types.SimpleNamespace(
    XCL_BO_SYNC_BO_TO_DEVICE="to device", XCL_BO_SYNC_BO_FROM_DEVICE="from device"
)
sys.modules["pyxrt"] = pyxrt
from pynq.buffer import PynqBuffer
from pynq.pl_server import embedded_device, xrt_device

xrt_device.pyxrt = pyxrt
calls = []
bo = types.SimpleNamespace(sync=lambda *arguments: calls.append(arguments))
device = xrt_device.XrtDevice.__new__(xrt_device.XrtDevice)
memory = np.zeros(1 << 20, np.uint8)
buffer = PynqBuffer(
    memory.shape, memory.dtype, buffer=memory, device=device, bo=bo, device_address=0x1000,
    coherent=False,
)
part = buffer[4096 : 4096 + 64]
print("slice: offset", part.offset, "bytes", part.nbytes)
part.flush()
part.invalidate()
for call in calls:
    print("sync of the buffer object with", call)
same = all(
    getattr(embedded_device.EmbeddedDevice, name) is getattr(xrt_device.XrtDevice, name)
    for name in ("flush", "invalidate")
)
print("boards do as cards:", same)
sys.exit(0 if calls == [("to device",), ("from device",)] and same else 1)
EOF
venv/bin/python slices.py || { echo "changed: slices are synchronised by themselves" >&2; exit 1; }
echo "as described"
