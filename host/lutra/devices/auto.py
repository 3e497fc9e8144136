"""The device ``auto``: those that are here, the fastest for a model first."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lutra.compile.configure import configure
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.base import Device
from lutra.devices.boards import BOARD_DRIVERS, BoardDriver, usable
from lutra.devices.estimate import Estimates, Profile
from lutra.devices.processors import PROCESSORS
from lutra_golden.errors import LutraError
from lutra_golden.model.capabilities import COMMON_PARTS, EVERY_PART, Capabilities
from lutra_golden.model.packed import PackedModel
from lutra_kernels import gpu_count, interpreted

__all__ = ["AutoDevices", "auto_capabilities", "notes_on"]

Progress = Callable[[str, float], None]
_log = logging.getLogger(__name__)


def auto_capabilities() -> Capabilities:
    """Parts of packed models that all devices of this machine run which ``auto`` may take."""
    boards = any(driver.is_here() for driver in BOARD_DRIVERS.values())
    return COMMON_PARTS if boards else EVERY_PART


@dataclass(frozen=True)
class _Candidate:
    """A device that may be taken; ``make`` raises LutraError with the reason why it cannot be."""

    tokens_per_s: float
    make: Callable[[], Device]


class AutoDevices:
    """Devices for ``model``, the fastest first, each made when its turn comes.

    Processors have a fixed order; a board comes before those that ``profile`` knows to be slower.
    Nothing is estimated where there is no board. ``bitstream`` is one for a board, in the place of
    those in the cache. A machine that has no GPU, or no board, needs no reason for it. Without a
    model, boards are left out.
    """

    def __init__(
        self,
        model: PackedModel | None = None,
        *,
        threads: int | None = None,
        bitstream: Path | None = None,
        profile: Profile | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.reasons: list[str] = []
        """Reasons why devices that are faster than the one last taken are not used."""
        self._profile, self._bitstream = profile or Estimates(), bitstream
        self._progress = progress
        names = [name for name in PROCESSORS if name != "cuda" or gpu_count() or interpreted()]
        makers = [partial(PROCESSORS[name].make, threads, progress) for name in names]
        drivers = [driver for driver in BOARD_DRIVERS.values() if driver.is_here()]
        if bitstream is not None and all(bitstream.suffix != each.suffix for each in drivers):
            self.reasons.append(f"no board is here that loads {bitstream}")
        if not drivers or model is None:
            self._left = [_Candidate(0.0, make) for make in makers]
            return
        rates = [self._profile.decode(name, model).tokens_per_s for name in names]
        self._left = [_Candidate(*each) for each in zip(rates, makers, strict=True)]
        for driver in drivers:
            self._insert(self._board(driver, model))

    @property
    def has_more(self) -> bool:
        """True if there are devices left to take."""
        return bool(self._left)

    def take(self) -> Device:
        """The fastest of the devices that are left and can be made."""
        while self._left:
            try:
                return self._left.pop(0).make()
            except LutraError as error:
                self.reasons.append(str(error))
        raise AssertionError("the golden device is always here")

    def load(self, model: PackedModel, device: Device | None = None) -> Device:
        """The fastest device that loads ``model``, of ``device`` and those that are left."""
        while True:
            device = device or self.take()
            try:
                device.load(model)
            except LutraError as error:
                if not self._left:
                    raise
                self.reasons.append(str(error))
                device = None
            else:
                return device

    def _insert(self, board: _Candidate) -> None:
        """Put a board before the first device behind which there is none that is as fast."""
        left = self._left
        at = next(
            i
            for i in range(len(left) + 1)
            if all(each.tokens_per_s < board.tokens_per_s for each in left[i:])
        )
        # golden comes last in any case
        left.insert(min(at, len(left) - 1), board)

    def _board(self, driver: BoardDriver, model: PackedModel) -> _Candidate:
        bitstream = self._bitstream
        if bitstream is not None and bitstream.suffix != driver.suffix:
            bitstream = None
        try:
            found, config = usable(driver, model, bitstream)
        except LutraError as error:
            return _Candidate(self._promise(driver, model), partial(_refuse, str(error)))
        rate = self._profile.decode(driver.device, model, config).tokens_per_s

        def make() -> Device:
            transport = driver.transport(found.path)
            return AcceleratorDevice(transport, config, progress=self._progress)

        _log.info("device %s is estimated at %.1f tokens/s", driver.device, rate)
        return _Candidate(rate, make)

    def _promise(self, driver: BoardDriver, model: PackedModel) -> float:
        """Tokens per second of the fastest board of this kind that holds the model, if it had a
        bitstream; without limit if none does, so that the reason is said."""
        rates: list[float] = []
        for board in driver.boards:
            try:
                config = configure(model, board.config.name)
            except LutraError:
                continue
            rates.append(self._profile.decode(driver.device, model, config).tokens_per_s)
        return max(rates, default=float("inf"))


def _refuse(reason: str) -> Device:
    raise LutraError(reason)


def notes_on(device: Device, reasons: Sequence[str]) -> list[str]:
    """A line for the user on each reason why ``device`` had to be taken."""
    runs = f"device {device.name} runs instead" + (", in NumPy" * (device.name == "golden"))
    return [f"{reason}; {runs}" for reason in reasons]
