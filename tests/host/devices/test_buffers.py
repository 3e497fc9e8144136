"""Buffers of a board by their addresses."""

from dataclasses import dataclass

import pytest

from lutra.devices.accelerator.buffers import BufferTable
from lutra.devices.base import DeviceError


@dataclass
class Piece:
    address: int
    n_bytes: int


def test_a_buffer_is_found_by_any_address_in_it() -> None:
    table, pieces = (
        BufferTable[Piece]("x"),
        [Piece(0x3000, 16), Piece(0x1000, 32), Piece(0x2000, 8)],
    )
    for piece in pieces:
        table.add(piece)
    assert [piece.address for piece in table] == [0x1000, 0x2000, 0x3000]
    for address, n_bytes, i, offset in (
        (0x1000, 32, 1, 0),
        (0x101F, 1, 1, 31),
        (0x2004, 4, 2, 4),
        (0x300F, 1, 0, 15),
    ):
        found, at = table.find(address, n_bytes)
        assert found is pieces[i] and at == offset


@pytest.mark.parametrize(
    ("address", "n_bytes"), [(0xFFF, 1), (0x1000, 33), (0x1020, 1), (0x2008, 1), (0x4000, 1)]
)
def test_bytes_of_no_buffer(address: int, n_bytes: int) -> None:
    table = BufferTable[Piece]("x")
    with pytest.raises(DeviceError):
        table.find(address, n_bytes)
    table.add(Piece(0x1000, 32))
    table.add(Piece(0x2000, 8))
    message = rf"^{n_bytes} bytes at {address:#x} lie in no buffer of device x: load the model agai"
    with pytest.raises(DeviceError, match=message):
        table.find(address, n_bytes)


def test_a_buffer_that_is_gone() -> None:
    table, piece = BufferTable[Piece]("x"), Piece(0x1000, 32)
    table.add(piece)
    assert table.remove(0x1001) is None
    assert table.remove(0x1000) is piece
    assert table.remove(0x1000) is None and not list(table)
    table.add(piece)
    table.clear()
    assert not list(table)
