"""Devices that a plan may use, by name: those that are here, and boards that are not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lutra.arguments import either
from lutra.compile.configure import configure
from lutra.devices.base import Device
from lutra.devices.choose import DEVICES, DeviceOptions, make_device, most_threads
from lutra.devices.cuda.device import describe_gpu
from lutra.devices.hardware import BOARD_SCHEME, LENT_SCHEME
from lutra.devices.processors import PROCESSORS
from lutra.serving.plans.measure import BUDGET_S, measure_device
from lutra.serving.plans.modelled import model_accelerator
from lutra.serving.plans.profile import DeviceProfile
from lutra.serving.plans.store import ProfileStore, fingerprint_of
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError
from lutra_golden.model.capabilities import COMMON_PARTS, Capabilities
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import BOARD_PROFILES

__all__ = ["MOST_SITES", "Site", "common_capabilities", "parse_sites"]

MOST_SITES = 4
"""Devices of a plan: the ways to divide a request grow with the factorial of their number."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Site:
    """A device that may take part: ``cpu``, ``cpu:1`` with one thread, a board that is modelled.

    ``label`` tells it from others of its name, ``name`` is the device's, or the board's if it
    ``is_here`` not.
    """

    label: str
    name: str
    threads: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Site":
        """The site of ``NAME`` or ``NAME:THREADS``; LutraError if there is none."""
        name, threads = text, None
        elsewhere = text.startswith((BOARD_SCHEME, LENT_SCHEME))
        if not elsewhere:
            name, _, given = text.partition(":")
            if given:
                if not given.isascii() or not given.isdigit():
                    raise LutraError(f"{text} must be {name}:N with N threads, such as cpu:1")
                threads = int(given)
        names = [each for each in DEVICES if each != "auto"]
        if name not in names and name not in BOARD_PROFILES and not elsewhere:
            raise LutraError(
                f"a device of a plan must be {either([*names, *BOARD_PROFILES])}, not {name!r}"
            )
        if threads is not None:
            if name != "cpu":
                raise LutraError(f"only device cpu has threads: give {name} without :{threads}")
            if not 1 <= threads <= most_threads():
                raise LutraError(f"threads must be 1 to {most_threads()}, not {threads}")
        return cls(label=text, name=name, threads=threads)

    @property
    def is_here(self) -> bool:
        """False for a board that is only modelled."""
        return self.name not in BOARD_PROFILES

    @property
    def capabilities(self) -> Capabilities:
        """Parts of packed models that it runs."""
        if self.name in PROCESSORS:
            return PROCESSORS[self.name].capabilities
        if not self.is_here:
            return COMMON_PARTS  # it is built already
        found = getattr(self.make(), "capabilities", COMMON_PARTS)
        return found if isinstance(found, Capabilities) else COMMON_PARTS

    def make(self, progress: Progress | None = None) -> Device:
        """The device, if it is here."""
        if not self.is_here:
            raise LutraError(
                f"{self.label} is modelled, and runs nothing: give a device that is here to run "
                "the plan"
            )
        return make_device(self.name, DeviceOptions(threads=self.threads), progress)

    def profile(
        self,
        model: PackedModel,
        device: Device | None,
        store: ProfileStore,
        *,
        by_cycles: bool = False,
        refresh: bool = False,
        budget_s: float = BUDGET_S,
        progress: Progress | None = None,
    ) -> DeviceProfile:
        """Its profile for the shape of ``model``, which ``device`` has loaded: from the store,
        unless it is to ``refresh``; else measured, or modelled if it is not here.

        With ``by_cycles`` the cycles of a simulator by the clock that it simulates count.
        """
        if device is None:
            config = self._config(model)
            fingerprint = fingerprint_of({"board": self.name, "config": config.name}, model)
            board = BOARD_PROFILES[self.name]
            return model_accelerator(model, config, board, self.label, fingerprint)
        given = device.facts()
        clock_hz = None
        if by_cycles and self.name == "rtl":
            clock_hz = float(given["target_clock_hz"])
        # sites of one kind share a profile
        facts: dict[str, object] = {
            **given,
            "name": self.name,
            "threads": self.threads,
            "by_cycles": clock_hz,
        }
        facts["library"] = _library(self.name)
        fingerprint = fingerprint_of(facts, model)
        found = None if refresh else store.load(fingerprint)
        if found is None:
            found = measure_device(
                device, self.label, fingerprint, clock_hz=clock_hz, budget_s=budget_s,
                progress=progress,
            )  # fmt: skip
            store.save(found)
        return found

    def _config(self, model: PackedModel) -> AcceleratorConfig:
        board = BOARD_PROFILES[self.name]
        return configure(model, board.config)


def parse_sites(texts: Sequence[str]) -> list[Site]:
    """Sites of their texts, :data:`MOST_SITES` at most; of those with one label, later ones get
    ``#2`` and so on."""
    if not texts:
        raise LutraError("a plan needs devices: give some, such as cpu,golden")
    if len(texts) > MOST_SITES:
        raise LutraError(f"plans are made for up to {MOST_SITES} devices, not {len(texts)}")
    sites, seen = list[Site](), dict[str, int]()
    for text in texts:
        site = Site.parse(text.strip())
        seen[site.label] = n = seen.get(site.label, 0) + 1
        label = site.label if n == 1 else f"{site.label}#{n}"
        sites.append(Site(label=label, name=site.name, threads=site.threads))
    return sites


def common_capabilities(sites: Sequence[Site]) -> Capabilities:
    """Parts of packed models that all of them run, so that one packed model is for all."""
    found = [site.capabilities for site in sites]
    return Capabilities(
        activation_groups=all(each.activation_groups for each in found),
        offsets=all(each.offsets for each in found),
        vocabulary=all(each.vocabulary for each in found),
    )


def _library(name: str) -> str:
    """The code that runs a processor's passes here; an accelerator's facts say that."""
    from lutra import __version__

    if name == "cpu":
        from lutra.devices.cpu.build import library_path
        from lutra.devices.cpu.interface import golden_header

        return f"{__version__} {library_path(golden_header()).parent.name}"
    if name == "cuda":
        return f"{__version__} {describe_gpu()}"
    return __version__
