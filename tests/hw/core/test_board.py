"""BoardAccelerator: the pins that block designs connect, and what a board's reset reaches."""

import pytest

pytest.importorskip("amaranth")

from amaranth.lib.wiring import In, Out
from tests.hw.core.test_accelerator import SMALL

from lutra_golden.core.packaging import INTERRUPT, REGISTER_BYTES, REGISTER_PORT
from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_hw.core.board import BoardAccelerator


def test_pins() -> None:
    members = BoardAccelerator(SMALL).signature.members
    names = set(members)
    assert {"ap_clk", "ap_rst_n", INTERRUPT} <= names
    assert not any("__" in name for name in names)
    buses = {name.rpartition("_")[0] for name in names} - {"ap", "ap_rst", ""}
    assert buses == {REGISTER_PORT, "m_axi_0", "m_axi_1"}
    assert 1 << members[f"{REGISTER_PORT}_awaddr"].shape == REGISTER_BYTES
    assert members["m_axi_0_araddr"].shape == ADDRESS_WIDTH
    assert members["m_axi_0_araddr"].flow is Out and members["m_axi_0_rdata"].flow is In
    assert members["m_axi_0_arcache"].shape == members["m_axi_1_awcache"].shape == 4
    # weights are only read
    assert "m_axi_0_awaddr" not in names


def test_addresses_are_not_cut() -> None:
    with pytest.raises(ValueError, match=r"^address_width must be 40 or more, not 32$"):
        BoardAccelerator(SMALL, address_width=32)
    wide = BoardAccelerator(SMALL, address_width=64)
    assert wide.signature.members["m_axi_1_awaddr"].shape == 64
