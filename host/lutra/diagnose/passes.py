"""Greedy generation on the golden device, and the first pass that another gets wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lutra.closing import Closing
from lutra.devices.base import Device, DeviceError, Session, Step, StepResult
from lutra.devices.golden import GoldenDevice
from lutra_golden.model.cache import LayerKv, SequenceKv
from lutra_golden.model.packed import PackedModel

__all__ = ["Difference", "GoldenPasses", "Pass", "first_difference", "same_kv"]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Tokens of a pass from ``position`` on, logits wanted of ``tokens[logits_from:]``."""

    position: int
    tokens: Sequence[int]
    logits_from: int
    expected: StepResult

    def step(self, session: Session) -> Step:
        """The pass as a step of a session."""
        return Step(session=session, tokens=self.tokens, logits_from=self.logits_from)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first pass that differs, number ``index``; ``error`` is the device's own, if it gave one.

    ``position`` is that of the first wrong logits, or of the pass if it has none. ``logits`` of
    ``n_logits`` differ there.
    """

    index: int
    at: Pass
    position: int
    text: str
    error: str | None = None


class GoldenPasses(Closing):
    """Passes of up to ``pass_tokens`` tokens: ``prompt``, then ``n_predict`` greedy tokens."""

    def __init__(
        self, model: PackedModel, prompt: Sequence[int], n_predict: int, pass_tokens: int
    ) -> None:
        self._golden = GoldenDevice()
        self._golden.load(model)
        self._session = self._golden.session()
        self._todo = [list(prompt[i : i + pass_tokens]) for i in range(0, len(prompt), pass_tokens)]
        self._left = n_predict
        self.known: list[Pass] = []
        """Passes that were run so far."""

    @property
    def device(self) -> GoldenDevice:
        """The golden device."""
        return self._golden

    def __iter__(self) -> Iterator[Pass]:
        while self._todo:
            tokens = self._todo.pop(0)
            is_last = not self._todo
            position = self._session.length
            logits_from = len(tokens) - is_last
            step = Step(session=self._session, tokens=tokens, logits_from=logits_from)
            [result] = self._golden.run([step])
            self.known.append(
                Pass(position=position, tokens=tokens, logits_from=logits_from, expected=result)
            )
            self._left -= is_last
            if is_last and self._left > 0:
                self._todo.append([int(result.argmax[-1])])
            yield self.known[-1]

    def kv(self, n: int) -> SequenceKv:
        """Keys and values of the first ``n`` positions."""
        kv = self._session.export()
        layers = {i: layer.first(n) for i, layer in kv.layers.items()}
        return SequenceKv(key_bits=kv.key_bits, value_bits=kv.value_bits, layers=layers)

    def close(self) -> None:
        """Release the model."""
        self._golden.close()


def first_difference(device: Device, passes: GoldenPasses) -> Difference | None:
    """The first pass of which ``device``, which has the model, gives something else than golden."""
    session = device.session()
    try:
        for index, each in enumerate(passes):
            found = _difference(device, session, passes, index, each)
            if found is not None:
                return found
    finally:
        session.close()
    return None


def _difference(
    device: Device, session: Session, passes: GoldenPasses, index: int, each: Pass
) -> Difference | None:
    try:
        [result] = device.run([each.step(session)])
        kv = session.export()
    except DeviceError as error:
        return Difference(
            index=index, at=each, position=each.position, text=str(error), error=str(error)
        )
    expected, first = each.expected, each.position + each.logits_from

    def differs(position: int, text: str) -> Difference:
        return Difference(index=index, at=each, position=position, text=text)

    wrong = (result.logits != expected.logits).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        count = int((result.logits[row] != expected.logits[row]).sum())
        best, other = int(expected.argmax[row]), int(result.argmax[row])
        text = f"{count} of {result.logits.shape[1]} logits differ"
        text += f", and the most likely token is {other}, not {best}" if best != other else ""
        return differs(first + row, text)
    for name, found, wanted in (
        ("scale of the logits", result.scale, expected.scale),
        ("most likely token", result.argmax, expected.argmax),
    ):
        if not np.array_equal(found, wanted):
            row = int((found != wanted).argmax())
            return differs(first + row, f"the {name} is {found[row]}, not {wanted[row]}")
    if result.saturated != expected.saturated:
        text = "it says that a value left its range" if result.saturated else ""
        return differs(each.position, text or "it does not say that a value left its range")
    reference = passes.kv(each.position + len(each.tokens))
    for layer, found_kv in kv.layers.items():
        if not same_kv(found_kv, reference.layers[layer]):
            return differs(each.position, f"keys or values of layer {layer} differ")
    return None


def same_kv(a: LayerKv, b: LayerKv) -> bool:
    """True if keys, values and scales are the same."""
    pairs = (
        (a.keys, b.keys),
        (a.values, b.values),
        (a.key_scale.m, b.key_scale.m),
        (a.key_scale.e, b.key_scale.e),
        (a.value_scale.m, b.value_scale.m),
        (a.value_scale.e, b.value_scale.e),
    )
    return all(np.array_equal(x, y) for x, y in pairs)
