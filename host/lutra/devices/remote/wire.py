"""Messages between a lender and its hosts: fields in JSON, then arrays as they lie in memory."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutra.devices.accelerator.agent import LinkError

__all__ = ["BODY_MAX", "FAULT", "NO_ROOM", "REFUSAL", "Message", "narrow", "pack", "unpack"]

FAULT, NO_ROOM, REFUSAL = "fault", "no room", "refusal"
"""Kinds of errors: of the device, of its memory, of what was asked."""

BODY_MAX = 1 << 30
"""Bytes of the longest message."""
_TYPES = ("int8", "uint8", "int16", "int32", "int64", "float64")
_SIZE = struct.Struct("<I")
_AXES = 3

Message = tuple[dict[str, Any], list[NDArray[Any]]]
"""Fields, and arrays."""


def pack(fields: Mapping[str, object], arrays: Sequence[NDArray[np.generic]] = ()) -> bytes:
    """A message: bytes of the header (u32), the header in JSON, the arrays, little-endian."""
    forms = [[each.dtype.name, list(each.shape)] for each in arrays]
    header = json.dumps({"fields": dict(fields), "arrays": forms}, separators=(",", ":")).encode()
    whole = [np.ascontiguousarray(each, each.dtype.newbyteorder("<")) for each in arrays]
    return b"".join([_SIZE.pack(len(header)), header, *(each.data for each in whole)])


def unpack(body: bytes) -> Message:
    """Inverse of :func:`pack`; LinkError for anything else."""
    try:
        (size,) = _SIZE.unpack_from(body)
        at = _SIZE.size + size
        header = json.loads(body[_SIZE.size : at])
        fields, arrays = dict(header["fields"]), list[NDArray[Any]]()
        for name, shape in header["arrays"]:
            if name not in _TYPES or len(shape) > _AXES or not all(_is_size(n) for n in shape):
                raise ValueError
            count = int(np.prod(shape, dtype=object))
            data = np.frombuffer(body, np.dtype(name).newbyteorder("<"), count, at)
            at += data.nbytes
            # as this machine has numbers, at addresses that they may lie at
            arrays.append(np.require(data, np.dtype(name), ["A"]).reshape(shape))
        if at != len(body):
            raise ValueError
    except (struct.error, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise LinkError("a message came that is none of this version") from None
    return fields, arrays


def _is_size(n: object) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= BODY_MAX


def narrow(values: NDArray[np.int64]) -> NDArray[np.signedinteger[Any]]:
    """The same numbers in the narrowest type that holds them all, for the way."""
    if not values.size:
        return values.astype(np.int8)
    low, high = values.min(), values.max()
    for kind in (np.int8, np.int16, np.int32):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return values.astype(kind)
    return values
