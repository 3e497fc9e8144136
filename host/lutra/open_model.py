"""A model to run: a packed one, a checkpoint rounded to a format, or one of random weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lutra.arguments import either
from lutra.checkpoints.weights import Dense
from lutra.models import RANDOM, find_model, load_model
from lutra.models.decoder import Decoder
from lutra.packed.file import is_packed, open_packed
from lutra.packed.random import random_packed
from lutra.packed.store import check_finished
from lutra.quantize import DEFAULT_GROUP, GROUPS
from lutra.quantize.pack import pack_model
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.cache import Kv
from lutra_golden.model.packed import PackedModel

__all__ = ["open_model", "open_packed_model"]

Progress = Callable[[str, float], None]
_KV_BITS = 8


def open_packed_model(
    name: str | Path,
    format: str | None = None,
    group: int | None = None,
    kv_bits: Kv | None = None,
    context: int | None = None,
    progress: Progress | None = None,
) -> PackedModel:
    """Load a model by its name, including ``random:SHAPE``."""
    if not str(name).startswith(RANDOM):
        return open_model(find_model(name), format, group, kv_bits, context, progress)[1]
    wanted = None if format is None else _format(format)
    return random_packed(
        str(name),
        wanted,
        group or DEFAULT_GROUP,
        context,
        kv_bits=_KV_BITS if kv_bits is None else kv_bits,
        progress=progress,
    )


def open_model(
    path: Path,
    format: str | None,
    group: int | None,
    kv_bits: Kv | None,
    context: int | None,
    progress: Progress | None,
) -> tuple[Decoder | None, PackedModel]:
    """Load a path; returns the checkpoint (None if already packed) and the packed model."""
    if group is not None and group not in GROUPS:
        raise LutraError(f"group must be {either(GROUPS)}, not {group}")
    if is_packed(path):
        for name, value, option in (
            ("format", format, "format"),
            ("group", group, "group"),
            ("kv", kv_bits, "kv_bits (--kv)"),
            ("context", context, "context"),
        ):
            if value is not None:
                raise LutraError(
                    f"{path} is packed already, its {name} cannot be changed: leave {option} out, "
                    "or pack the checkpoint again"
                )
        return None, open_packed(path).model
    check_finished(path)
    source = load_model(path).limited(context)
    wanted = None if format is None else _format(format)
    if progress is not None and isinstance(source.layers[0].q_proj, Dense):
        # it is done anew each time that the checkpoint is loaded
        progress = partial(_hint, progress)
    packed = pack_model(
        source, wanted, group or DEFAULT_GROUP, progress, _KV_BITS if kv_bits is None else kv_bits
    )
    if group is not None and packed.group is None:
        raise LutraError(f"the weights of {packed.name} are in no groups: leave group out")
    return source, packed


def _hint(progress: Progress, stage: str, share: float) -> None:
    progress(f"{stage} (lutra pack does it once and for all)", share)


def _format(name: str) -> Format:
    try:
        return Format.parse(name)
    except ValueError as error:
        raise LutraError(str(error)) from None
