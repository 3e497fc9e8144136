"""A model to run: a packed one, a checkpoint rounded to a format, or one of random weights."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

from lutra.arguments import either
from lutra.models import RANDOM, find_model, load_model, name_of
from lutra.models.decoder import Decoder
from lutra.packed.file import is_packed, open_packed
from lutra.packed.kept import KeptModels, key_of
from lutra.packed.store import check_finished
from lutra.quantize import (
    activation_groups,
    default_parts,
    group_of,
)
from lutra.quantize.pack import pack_model
from lutra.quantize.vocabulary import HEAD_BITS, PLAIN_HEAD
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import GROUPS, Format
from lutra_golden.model.cache import Kv, kv_pair
from lutra_golden.model.capabilities import COMMON_PARTS, Capabilities
from lutra_golden.model.packed import PackedModel

__all__ = ["open_model", "open_packed_model"]

Progress = Callable[[str, float], None]
_LOG = logging.getLogger(__name__)
_KV_BITS = 8


def open_packed_model(
    name: str | Path,
    format: str | None = None,
    group: int | None = None,
    kv_bits: Kv | None = None,
    context: int | None = None,
    progress: Progress | None = None,
    capabilities: Capabilities = COMMON_PARTS,
    a_group: int | None = None,
    head_bits: int | None = None,
) -> PackedModel:
    """Load a model by its name, including ``random:SHAPE``."""
    if not str(name).startswith(RANDOM):
        return open_model(
            find_model(name), format, group, kv_bits, context, progress, a_group,
            capabilities=capabilities, head_bits=head_bits,
        )[1]  # fmt: skip
    from lutra.packed.random import random_packed

    wanted = None if format is None else _format(format)
    return random_packed(
        str(name),
        wanted,
        group_of(wanted, group),
        context,
        kv_bits=_KV_BITS if kv_bits is None else kv_bits,
        a_groups=activation_groups(a_group or None),
        head_bits=head_bits or None,
        progress=progress,
    )


def open_model(
    path: Path,
    format: str | None,
    group: int | None,
    kv_bits: Kv | None,
    context: int | None,
    progress: Progress | None,
    a_group: int | None = None,
    offsets: bool | None = None,
    capabilities: Capabilities = COMMON_PARTS,
    head_bits: int | None = None,
    before_packing: Callable[[], object] | None = None,
) -> tuple[Callable[[], Decoder] | None, PackedModel]:
    """Load a path; returns what reads the checkpoint, None if it is packed, and the packed model.

    What a checkpoint of some size is packed to is kept, and taken the next time. ``a_group`` and
    ``offsets`` that are None are chosen for devices with these ``capabilities``, as are
    ``head_bits``, those of embedding and head in codes, 0 for none. ``before_packing`` is called
    before what takes long, unless it has been done before.
    """
    if group is not None and group not in GROUPS:
        raise LutraError(f"group must be {either(GROUPS)}, not {group}")
    if is_packed(path):
        for name, value, option in (
            ("format", format, "format"),
            ("group", group, "group"),
            ("kv", kv_bits, "kv_bits (--kv)"),
            ("groups of activations", a_group, "a_group (--a-group)"),
            ("offsets", offsets, "offsets"),
            ("head", head_bits, "head_bits (--head)"),
            ("context", context, "context"),
        ):
            if value is not None:
                raise LutraError(
                    f"{path} is packed already, its {name} cannot be changed: leave {option} out, "
                    "or pack the checkpoint again"
                )
        return None, open_packed(path).model
    check_finished(path)
    wanted = None if format is None else _format(format)
    kv = _KV_BITS if kv_bits is None else kv_bits
    activation_groups(a_group or None)  # refused before anything is read
    if head_bits is not None and head_bits not in (heads := (PLAIN_HEAD, *HEAD_BITS)):
        raise LutraError(f"head_bits must be {either(heads)}, not {head_bits}")
    settings = {
        "format": format,
        "group": group,
        "kv": kv_pair(kv),
        "a_group": a_group,
        "offsets": offsets,
        "head_bits": head_bits,
        "context": context,
        "capabilities": asdict(capabilities),
    }
    models = KeptModels()
    key = key_of(path, settings, models.seen)
    packed = None if key is None else models.find(key, name_of(path))

    @cache
    def source() -> Decoder:
        return load_model(path).limited(context)

    if packed is None:
        if before_packing:
            before_packing()
        size = group_of(wanted, group)
        model = source()
        parts = default_parts(model, wanted, a_group, offsets, head_bits, capabilities)
        packed = pack_model(model, wanted, size, progress, kv, *parts)
        if key is not None:
            models.keep_meanwhile(
                key, packed, lambda reason: _LOG.warning("the packed model is not kept, %s", reason)
            )
    if group is not None and packed.group is None:
        raise LutraError(f"the weights of {packed.name} are in no groups: leave group out")
    return source, packed


def _format(name: str) -> Format:
    try:
        return Format.parse(name)
    except ValueError as error:
        raise LutraError(str(error)) from None
