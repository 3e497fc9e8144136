"""A model to run: a packed one, a checkpoint rounded to a format, or one of random weights."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

from lutra.arguments import either
from lutra.models import RANDOM, find_model, load_model, name_of
from lutra.models.decoder import Decoder, DecoderConfig
from lutra.packed.file import is_packed, open_packed
from lutra.packed.kept import KeptModels, key_of
from lutra.packed.store import check_finished
from lutra.quantize import (
    Parts,
    activation_groups,
    default_parts,
    group_of,
)
from lutra.quantize.pack import check_packing, pack_model
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
    offsets: bool | None = None,
    head_bits: int | None = None,
    before_packing: Callable[[Format, DecoderConfig], object] | None = None,
) -> PackedModel:
    """Load a model by its name, including ``random:SHAPE``, whose groups have no ``offsets``; see
    :func:`open_model`."""
    if not str(name).startswith(RANDOM):
        return open_model(
            find_model(name), format, group, kv_bits, context, progress, a_group, offsets,
            capabilities=capabilities, head_bits=head_bits, before_packing=before_packing,
        )[1]  # fmt: skip
    from lutra.packed.random import random_config, random_format, random_packed

    wanted = random_format(str(name)) if format is None else _format(format)
    if before_packing:
        before_packing(wanted, random_config(str(name), context))
    return random_packed(
        str(name),
        wanted,
        group_of(wanted, group),
        context,
        kv_bits=_KV_BITS if kv_bits is None else kv_bits,
        a_groups=activation_groups(a_group or None),
        head_bits=head_bits,
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
    before_packing: Callable[[Format, DecoderConfig], object] | None = None,
    once_checked: Callable[[], object] | None = None,
) -> tuple[Callable[[], Decoder] | None, PackedModel]:
    """Load a path; returns what reads the checkpoint, None if it is packed, and the packed model.

    What a checkpoint of some size is packed to is kept, and taken the next time. ``a_group`` and
    ``offsets`` that are None are chosen for devices with these ``capabilities``, as are
    ``head_bits``, those of embedding and head in codes, 0 for none.

    What the header shows to be wrong is refused before anything else is read. Then, or if the
    packed model is kept, ``once_checked`` is called; ``before_packing`` is called with the format
    and the header's numbers unless the packed model is there, and may refuse them.
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
    size, models = group_of(wanted, group), KeptModels()

    @cache
    def source() -> Decoder:
        return load_model(path).limited(context)

    @cache
    def parts() -> Parts:
        found = default_parts(source(), wanted, a_group, offsets, head_bits, capabilities)
        form = check_packing(source(), wanted, found.a_groups)
        if once_checked:
            once_checked()
        if before_packing:
            before_packing(form, source().config)
        return found

    packed = None
    key = key_of(path, settings, models.seen, before_reading=parts)
    if key is not None and models.has(key):
        if once_checked and not parts.cache_info().currsize:
            once_checked()
        packed = models.find(key, name_of(path))
    if packed is None:
        chosen = parts()
        packed = pack_model(source(), wanted, size, progress, kv, *chosen)
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
