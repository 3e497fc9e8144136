"""The device of a model: one that was given or named, or the best that ``auto`` finds."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lutra.arguments import either
from lutra.devices.base import Device, Findable
from lutra.devices.choose import DEVICES, MADE_FOR_THE_MODEL, DeviceOptions, make_device
from lutra.devices.processors import PROCESSORS
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.capabilities import COMMON_PARTS, Capabilities
from lutra_golden.model.packed import PackedModel

if TYPE_CHECKING:
    from lutra.devices.auto import AutoDevices

__all__ = ["Placement"]

Progress = Callable[[str, float], None]


class Placement:
    """The device of one model, and the next best in its place while ``auto``'s has done nothing.

    ``wanted`` is a name, a device, or names of several that are to share the work. An accelerator
    is made of its name here; a processor, which may have to be compiled first, by :meth:`prepare`
    or :meth:`choose`, and what ``auto`` becomes for the model by :meth:`choose`.
    """

    def __init__(
        self,
        wanted: str | Device | list[str] | tuple[str, ...],
        options: DeviceOptions,
        progress: Progress | None,
    ) -> None:
        self._wanted, self._options, self._progress = wanted, options, progress
        self._auto: AutoDevices | None = None
        self._device: Device | None = None
        self._proven = False
        self._parts: list[str] = []
        self.capabilities = COMMON_PARTS
        """Parts of a packed model that the device runs; of ``auto``, all that it may take."""
        if isinstance(wanted, list | tuple):
            _refuse(options)
            self._device = self._planned(wanted)
        elif not isinstance(wanted, str):
            _check_device(wanted)
            _refuse(options)
            self._device = wanted
        elif wanted == "auto":
            from lutra.devices.auto import auto_capabilities

            options.check(wanted)
            self.capabilities = auto_capabilities()
        elif wanted in PROCESSORS:
            options.check(wanted)
            self.capabilities = PROCESSORS[wanted].capabilities
        else:
            self._device = make_device(wanted, options, progress)
        if self._device is not None:
            found = getattr(self._device, "capabilities", COMMON_PARTS)
            self.capabilities = found if isinstance(found, Capabilities) else COMMON_PARTS

    def prepare(self, format: Format) -> None:
        """Make the device of a name, and see that a board is here, so that what is missing is told
        of before a model is packed in ``format`` for it."""
        self.check(format)
        self._make()
        if isinstance(self._device, Findable):
            self._device.find()

    def check(self, format: Format) -> None:
        """Refuse an engine that does not run a format, before a model is packed in it."""
        if self._options.engine is not None:
            from lutra.compile.fit import check_engine

            check_engine(self._options.engine, format)

    @property
    def device(self) -> Device:
        """The device, once it is chosen."""
        assert self._device is not None, "it is chosen"
        return self._device

    @property
    def notes(self) -> list[str]:
        """Reasons why faster devices are not used, and why the model is packed less precisely than
        another device would have it, one line each."""
        if self._auto is None:
            return [*self._parts]
        from lutra.devices.auto import notes_on

        return notes_on(self.device, self._auto.reasons) + self._parts

    def note_parts(self, model: PackedModel) -> None:
        """Note what ``model``, packed for the device, lacks of what others run."""
        if self.capabilities.activation_groups or model.ternary or model.a_bits != 8:
            return
        devices = f"device {self.device.name} has" if self._auto is None else "some devices have"
        self._parts.append(
            f"packed as {model.format}, with one scale per token, as {devices} no activations in "
            "groups: -dev cpu is closer to the checkpoint, and gives other logits"
        )

    def note_engine(self, model: PackedModel) -> None:
        """Note that the head of ``model`` keeps a simulated accelerator, whose engine nobody chose,
        from the one of ternary weights."""
        chosen = self._options.engine, isinstance(self._options.config, AcceleratorConfig)
        if self._wanted not in MADE_FOR_THE_MODEL or any(chosen):
            return
        from lutra.compile.fit import engines_for

        found, plain = engines_for(model), engines_for(replace(model, vocabulary=None))
        if found[0] != plain[0]:
            self._parts.append(
                f"embedding and head keep the codes of the file, which engine {found[0]} runs and "
                f"not {plain[0]}: --head 0 runs the model on engine {plain[0]}"
            )

    def choose(self, model: PackedModel) -> None:
        """Choose the device of ``auto`` for ``model``; make that of another name."""
        self._make()
        if self._wanted == "auto":
            from lutra.devices.auto import AutoDevices

            options = self._options
            self._auto = AutoDevices(
                model,
                threads=options.threads,
                bitstream=options.bitstream,
                progress=self._progress,
            )
            self._device = self._auto.take()

    def _make(self) -> None:
        if self._device is None and isinstance(self._wanted, str) and self._wanted != "auto":
            self._device = make_device(self._wanted, self._options, self._progress)

    def _planned(self, names: Sequence[object]) -> Device:
        """One device of several by name."""
        from lutra.serving.plans.planner import planned_device
        from lutra.serving.plans.sites import parse_sites

        return planned_device(parse_sites([str(name) for name in names]), progress=self._progress)

    def renew(self, model: PackedModel) -> None:
        """Make the device again, in a forked process: the one of the parent is the parent's."""
        if isinstance(self._wanted, str):
            self._device = None
        elif isinstance(self._wanted, list | tuple):
            self._device = self._planned(self._wanted)
        self.choose(model)

    def load(self, model: PackedModel) -> None:
        """Load the model; the device ``auto`` becomes the next best one if it cannot."""
        self._proven = False
        if self._auto is None:
            self.device.load(model)
        else:
            self._device = self._auto.load(model, self.device)

    def prove(self) -> None:
        """Note that the device has computed something: from now on its errors are errors."""
        self._proven = True

    def pass_over(self, error: LutraError) -> bool:
        """Take the next best device, to be loaded, as this one failed before its first token.

        False if it is not to be replaced: it was asked for by name, or has worked before.
        """
        if self._auto is None or self._proven or not self._auto.has_more:
            return False
        self.device.close()
        self._auto.reasons.append(str(error))
        self._device = self._auto.take()
        return True


def _check_device(device: object) -> None:
    for method in ("load", "session", "run", "greedy", "close"):
        if not callable(getattr(device, method, None)):
            raise LutraError(
                f"device must be {either(DEVICES)}, or an object with the methods of "
                f"lutra.devices.base.Device, not {type(device).__name__}"
            )


def _refuse(options: DeviceOptions) -> None:
    """Refuse options of a device that is given by name."""
    for name, value in vars(options).items():
        if value is not None:
            raise LutraError(
                f"{name} is for a device that is given by name: leave it out, or make the device "
                "with it"
            )
