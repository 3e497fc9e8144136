"""The first layer that a device computes differently, each from golden's own residual stream."""

import numpy as np
from numpy.typing import NDArray

from lutra.devices.base import Device, DeviceError, Session, Step
from lutra.diagnose.passes import GoldenPasses, Pass, same_kv

__all__ = ["first_layer"]


def first_layer(device: Device, passes: GoldenPasses, index: int) -> int | None:
    """The first layer that ``device`` gets wrong in pass number ``index``, None if each is right.

    Every layer starts from the keys, values and residual stream of the golden device.
    """
    each = passes.known[index]
    before = passes.kv(each.position)
    n_layers = len(before.layers)
    golden, ours = passes.device.session(), device.session()
    try:
        golden.restore(before)
        stream = None
        for i in range(n_layers):
            layers = range(i, i + 1)
            ours.restore(before)
            [expected] = passes.device.run([_step(each, golden, layers, stream)])
            try:
                [found] = device.run([_step(each, ours, layers, stream)])
                kv = ours.export(layers)
            except DeviceError:
                return i
            if not same_kv(kv.layers[i], golden.export(layers).layers[i]):
                return i
            if not np.array_equal(found.logits, expected.logits):
                return i
            if expected.residual is not None and found.residual is not None:
                if not np.array_equal(found.residual, expected.residual):
                    return i
            stream = expected.residual
        return None
    finally:
        golden.close()
        ours.close()


def _step(each: Pass, session: Session, layers: range, residual: NDArray[np.int32] | None) -> Step:
    return Step(
        session=session,
        tokens=each.tokens,
        logits_from=each.logits_from,
        layers=layers,
        residual=residual,
    )
