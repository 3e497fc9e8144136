"""Profiles that are kept in Lutra's cache, and what they are of."""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lutra.serving.plans.profile import DeviceProfile
from lutra_golden.errors import LutraError
from lutra_golden.machine import available_cores, cache_root
from lutra_golden.model.packed import PackedModel

__all__ = ["ProfileStore", "fingerprint_of", "shape_of"]

_VERSION = 3
_LOG = logging.getLogger(__name__)


def shape_of(model: PackedModel) -> dict[str, object]:
    """Properties that a model's times depend on: its sizes and formats, and not its weights."""
    return {
        "layers": len(model.layers),
        "hidden": model.hidden_size,
        "inner": model.intermediate_size,
        "heads": (model.n_heads, model.n_kv_heads, model.head_dim),
        "vocabulary": (model.vocab_size, model.vocabulary is not None),
        "context": model.context,
        "format": (model.format, model.group, model.offsets, str(model.a_groups)),
        "kv": model.kv,
        "gate": model.gate.name,
        "parts": (model.biased, model.head_normed, model.ternary),
    }


def fingerprint_of(device: Mapping[str, object], model: PackedModel) -> str:
    """16 hexadecimal digits for a device, described by its facts, this machine, and the shape of a
    model."""
    content = {
        "version": _VERSION,
        "device": dict(device),
        "machine": (platform.machine(), _processor(), available_cores()),
        "model": shape_of(model),
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ProfileStore:
    """Profiles in ``folder``, of the cache if left out, one file for each fingerprint.

    What cannot be read is measured again; what cannot be written is measured each time.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_root() / "profiles" if folder is None else folder

    def load(self, fingerprint: str) -> DeviceProfile | None:
        """The profile with this fingerprint, None if there is none."""
        path = self._path(fingerprint)
        try:
            profile = DeviceProfile.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LutraError) as error:
            _LOG.warning("the profile %s is not used: %s", path, error)
            return None
        return profile if profile.fingerprint == fingerprint else None

    def save(self, profile: DeviceProfile) -> None:
        """Keep a profile, in the place of the one with its fingerprint."""
        path = self._path(profile.fingerprint)
        part = path.with_suffix(f".{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(profile.to_json()), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            _LOG.warning("the profile %s is not kept: %s", path, error)

    def forget(self, fingerprint: str) -> None:
        """Drop a profile, so that it is measured again."""
        with suppress(OSError):
            self._path(fingerprint).unlink()

    def _path(self, fingerprint: str) -> Path:
        return self.folder / f"{fingerprint}.json"


def _processor() -> str:
    """Name of the processor, as the system has it."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
