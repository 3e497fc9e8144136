"""FPGA parts, and the resources that they have."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PARTS", "Fpga"]


@dataclass(frozen=True, kw_only=True)
class Fpga:
    """Totals of a part, in the units of :class:`~lutra_flows.synth.cells.Resources`.

    ``lut`` are all LUTs, for logic and for memory.
    """

    name: str
    target: str
    lut: int
    ff: int
    dsp: int
    bram: int
    uram: int
    source: str


PARTS = {
    part.name: part
    for part in (
        Fpga(
            name="xck26", target="xcup", lut=117_120, ff=234_240, dsp=1_248, bram=144, uram=64,
            source="AMD DS987, Kria K26 (board KV260)",
        ),
        Fpga(
            name="xcu50", target="xcup", lut=871_680, ff=1_743_360, dsp=5_952, bram=1_344, uram=640,
            source="AMD DS965, Alveo U50",
        ),
        Fpga(
            name="xcu55c", target="xcup", lut=1_303_680, ff=2_607_360, dsp=9_024, bram=2_016,
            uram=960, source="AMD DS978, Alveo U55C",
        ),
        Fpga(
            name="xc7z020", target="xc7", lut=53_200, ff=106_400, dsp=220, bram=140, uram=0,
            source="AMD DS190, Zynq-7000 (board PYNQ-Z2)",
        ),
        Fpga(
            name="lfe5u-85f", target="ecp5", lut=83_640, ff=83_640, dsp=156, bram=208, uram=0,
            source="Lattice FPGA-DS-02012, ECP5",
        ),
    )
}  # fmt: skip
"""Parts that ``lutra synth --whole --part`` knows, by name."""
