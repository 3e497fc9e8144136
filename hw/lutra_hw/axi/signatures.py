"""AXI4 and AXI4-Lite ports with ARM's signal names, as one flat group per port."""

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.core.ports import ADDRESS_WIDTH, Response

__all__ = [
    "RESP_OKAY",
    "RESP_SLVERR",
    "Axi4LiteSignature",
    "Axi4ReadSignature",
    "Axi4Signature",
    "Axi4WriteSignature",
    "drive",
]

RESP_OKAY, RESP_SLVERR = int(Response.OKAY), int(Response.SLVERR)


def _read_members(data_width, addr_width, id_width):
    return {
        "arid": Out(id_width),
        "araddr": Out(addr_width),
        "arlen": Out(8),
        "arsize": Out(3),
        "arburst": Out(2),
        "arvalid": Out(1),
        "arready": In(1),
        "rid": In(id_width),
        "rdata": In(data_width),
        "rresp": In(2),
        "rlast": In(1),
        "rvalid": In(1),
        "rready": Out(1),
    }


def _write_members(data_width, addr_width, id_width):
    return {
        "awid": Out(id_width),
        "awaddr": Out(addr_width),
        "awlen": Out(8),
        "awsize": Out(3),
        "awburst": Out(2),
        "awvalid": Out(1),
        "awready": In(1),
        "wdata": Out(data_width),
        "wstrb": Out(data_width // 8),
        "wlast": Out(1),
        "wvalid": Out(1),
        "wready": In(1),
        "bid": In(id_width),
        "bresp": In(2),
        "bvalid": In(1),
        "bready": Out(1),
    }


class _Signature(wiring.Signature):
    def __init__(self, members, data_width, addr_width, id_width):
        self.data_width, self.addr_width, self.id_width = data_width, addr_width, id_width
        super().__init__(members)

    def __eq__(self, other):
        return type(self) is type(other) and self.members == other.members


class Axi4ReadSignature(_Signature):
    """Read channels AR and R of an AXI4 master."""

    def __init__(self, data_width: int, addr_width: int = ADDRESS_WIDTH, id_width: int = 1):
        members = _read_members(data_width, addr_width, id_width)
        super().__init__(members, data_width, addr_width, id_width)


class Axi4WriteSignature(_Signature):
    """Write channels AW, W and B of an AXI4 master."""

    def __init__(self, data_width: int, addr_width: int = ADDRESS_WIDTH, id_width: int = 1):
        members = _write_members(data_width, addr_width, id_width)
        super().__init__(members, data_width, addr_width, id_width)


class Axi4Signature(_Signature):
    """All five channels of an AXI4 master."""

    def __init__(self, data_width: int, addr_width: int = ADDRESS_WIDTH, id_width: int = 1):
        members = _read_members(data_width, addr_width, id_width)
        members |= _write_members(data_width, addr_width, id_width)
        super().__init__(members, data_width, addr_width, id_width)


class Axi4LiteSignature(_Signature):
    """All five channels of an AXI4-Lite master with 32-bit data."""

    def __init__(self, addr_width: int = 12):
        members = {
            "awaddr": Out(addr_width),
            "awprot": Out(3),
            "awvalid": Out(1),
            "awready": In(1),
            "wdata": Out(32),
            "wstrb": Out(4),
            "wvalid": Out(1),
            "wready": In(1),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
            "araddr": Out(addr_width),
            "arprot": Out(3),
            "arvalid": Out(1),
            "arready": In(1),
            "rdata": In(32),
            "rresp": In(2),
            "rvalid": In(1),
            "rready": Out(1),
        }
        super().__init__(members, 32, addr_width, 0)


def drive(m, port, inner):
    """Let ``inner``, a master inside the component, drive ``port``, which the component offers.

    ``port`` may have more channels than ``inner``; the others are left alone.
    """
    for name, member in inner.signature.members.items():
        source, target = getattr(inner, name), getattr(port, name)
        m.d.comb += target.eq(source) if member.flow is Out else source.eq(target)
