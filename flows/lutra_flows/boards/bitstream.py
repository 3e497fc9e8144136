"""Bitstreams as Linux loads them: a ``.bit`` file's configuration without its header.

Source: AMD UG470 and UG570 (configuration data, byte order); Linux, drivers/fpga/zynq-fpga.c, which
expects the sync word with its bytes turned round.
"""

import struct

from lutra_golden.errors import LutraError

__all__ = ["SYNC", "loadable"]

SYNC = bytes.fromhex("aa995566")
"""Sync word in the order of a ``.bit`` file."""


def loadable(data: bytes) -> bytes:
    """Configuration in a ``.bit`` file, with the bytes of each word of 32 bits turned round."""
    try:
        (length,) = struct.unpack_from(">H", data)
        at = 2 + length + 2
        while (key := data[at : at + 1]) in (b"a", b"b", b"c", b"d"):
            (length,) = struct.unpack_from(">H", data, at + 1)
            at += 3 + length
        (length,) = struct.unpack_from(">I", data, at + 1)
    except struct.error:
        key, length, at = b"", 0, 0
    words = data[at + 5 : at + 5 + length]
    if key != b"e" or len(words) != length or length % 4 or SYNC not in words[:4096]:
        raise LutraError("the bitstream is no whole .bit file: build it again")
    return struct.pack(f">{length // 4}I", *struct.unpack(f"<{length // 4}I", words))
