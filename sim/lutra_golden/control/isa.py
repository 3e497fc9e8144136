"""The instruction set: 32-byte instructions, their fields, encoding and decoding.

Every instruction names the unit that executes it. Units run at the same time and each in program
order; an instruction starts when every unit has completed at least as many instructions of this
run as its ``wait_*`` fields say. ``LMMA`` is named after LUT Tensor Core (ISCA'25), section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

__all__ = [
    "ADDRESS_UNIT",
    "DOCS",
    "FIELDS",
    "FLAG_BIAS",
    "FLAG_CENTRE",
    "FLAG_FIRST",
    "FLAG_LOGITS",
    "FLAG_LOW",
    "FLAG_PLAIN",
    "FLAG_QK_NORM",
    "FLAG_STREAM",
    "HEADER",
    "INSTRUCTION_BYTES",
    "Field",
    "Instruction",
    "NormSource",
    "Opcode",
    "Unit",
    "decode",
    "encode",
]

INSTRUCTION_BYTES = 32
FLAG_LOGITS = 1
"""Only the tokens whose logits are wanted: ``LOGITS_FROM`` up to the tile's last."""
FLAG_FIRST = 2
"""LOGITS: the first rows of the head; the arg-max starts anew."""
FLAG_PLAIN = 4
"""NORMQ: multiplies by gamma and quantises without RMSNorm; ``inv_n`` and ``eps`` do not count."""
FLAG_BIAS = 8
"""ROPEQ: adds biases to queries, keys and values; needs ``qkv_bias`` of the configuration."""
FLAG_QK_NORM = 16
"""ROPEQ: RMSNorm of every query and key head; needs ``qk_norm`` of the configuration."""
FLAG_LOW = 32
"""EMBED: changes only the 16 low bits of each element of the residual stream."""
FLAG_STREAM = 64
"""LOGITS: stores the residual stream as it is; ``param_word`` does not count."""

FLAG_CENTRE = 128
"""ROPEQ with FLAG_BIAS and without FLAG_QK_NORM: takes a centre from the keys it has rotated."""


class Unit(IntEnum):
    """Units that execute instructions, in the order of the wait fields."""

    LOAD = 0
    MATMUL = 1
    VECTOR = 2
    ATTENTION = 3


class Opcode(IntEnum):
    """Operation codes."""

    END = 0
    LDPARAM = 1
    LDROPE = 2
    EMBED = 3
    LMMA = 4
    NORMQ = 5
    ROPEQ = 6
    ATTEND = 7
    RESADD = 8
    LOGITS = 9

    @property
    def unit(self) -> Unit | None:
        """The unit that executes it; None for END, which the sequencer does."""
        return _UNITS.get(self)


_UNITS = {
    Opcode.LDPARAM: Unit.LOAD,
    Opcode.LDROPE: Unit.LOAD,
    Opcode.EMBED: Unit.LOAD,
    Opcode.LMMA: Unit.MATMUL,
    Opcode.NORMQ: Unit.VECTOR,
    Opcode.ROPEQ: Unit.VECTOR,
    Opcode.RESADD: Unit.VECTOR,
    Opcode.LOGITS: Unit.VECTOR,
    Opcode.ATTEND: Unit.ATTENTION,
}


DOCS: Mapping[Opcode, str] = {
    Opcode.END: "Ends the program; the run is done when every unit has completed everything.",
    Opcode.LDPARAM: "Loads words of eight int16 into the parameter buffer.",
    Opcode.LDROPE: "Loads the rotary rows of every chunk's positions.",
    Opcode.EMBED: "Fetches the embedding row of every TOKEN into the residual stream. Rows of 32 "
    "bits, those of an embedding in codes, come from memory as two tables: their high halves, "
    "shifted by 16, then their low halves with FLAG_LOW. So does a residual stream, with TOKEN "
    "counting from 0.",
    Opcode.LMMA: "Matrix product of the activations with a matrix that streams through the "
    "ports for weights, digit by digit; the engine applies group scales and zero points or "
    "offsets, and rounds the finished sums once by SHIFT.",
    Opcode.NORMQ: "RMSNorm of the source (not with FLAG_PLAIN), times gamma, quantised to "
    "activations of the engine's width and a scale per token, with a_groups and an exponent per "
    "group of a_groups.size (of the attention's output at most head_dim). GATE squares the "
    "positive gate, SWIGLU takes the SiLU of the gate, and both multiply by up first.",
    Opcode.ROPEQ: "Rotates queries and keys, quantises queries to int8 and keys and values to "
    "key_width and value_width bits with a scale per head, and stores keys, values and their "
    "scales in the KV cache. With FLAG_BIAS or FLAG_QK_NORM the heads are first brought to "
    "Q16; then come the "
    "biases of all rows, in the order of the accumulators, and RMSNorm of each query and key times "
    "gamma. FLAG_CENTRE takes a vector from each key once it is rotated. "
    "In the parameter buffer lie the biases (FLAG_BIAS), then what is taken from the keys "
    "(FLAG_CENTRE), or gamma of queries and gamma of "
    "keys (FLAG_QK_NORM), head_dim each in the order that a head's accumulators have.",
    Opcode.ATTEND: "Causal attention of each chunk's queries to the positions of its own KV cache, "
    "from 0 up to their own, or to the latest WINDOW positions of each query.",
    Opcode.RESADD: "Dequantises the accumulators and adds them to the residual stream.",
    Opcode.LOGITS: "Multiplies the accumulators by their rows' scales, stores them at "
    "LOGITS_BASE + token * LOGITS_STRIDE + 4 * row_first, and keeps the arg-max. In place "
    "of logits, FLAG_STREAM stores elements of the residual stream as they are, from word ACC_BASE "
    "on.",
}
"""Effect of each instruction, for the reference."""


class NormSource(IntEnum):
    """Source that NORMQ reads."""

    RESIDUAL = 0
    ATTENTION = 1
    GATE = 2
    SWIGLU = 3


@dataclass(frozen=True)
class Field:
    """Bits ``[start, start + width)`` of an instruction, and what they mean.

    A value is a multiple of ``unit``, which is what one in the bits counts.
    """

    start: int
    width: int
    doc: str
    unit: int = 1


ADDRESS_UNIT = 64
"""Bytes that an instruction's address counts in: 32 bits of it reach 256 GiB."""

HEADER = {
    "opcode": Field(0, 8, "operation"),
    "flags": Field(
        8,
        8,
        "FLAG_LOGITS, FLAG_FIRST, FLAG_PLAIN, FLAG_BIAS, FLAG_QK_NORM, FLAG_LOW, "
        "FLAG_STREAM, FLAG_CENTRE",
    ),
    "wait_load": Field(16, 16, "load instructions that must have completed"),
    "wait_matmul": Field(32, 16, "matmul instructions that must have completed"),
    "wait_vector": Field(48, 16, "vector instructions that must have completed"),
    "wait_attention": Field(64, 16, "attention instructions that must have completed"),
}


def _layout(*fields: tuple[str, int, str]) -> dict[str, Field]:
    layout: dict[str, Field] = {}
    start = 80
    for name, width, doc in fields:
        layout[name] = Field(start, width, doc, ADDRESS_UNIT if name == "address" else 1)
        start += width
    if start > 8 * INSTRUCTION_BYTES:
        raise ValueError(f"instruction fields need {start} bits, more than {8 * INSTRUCTION_BYTES}")
    return layout


FIELDS: Mapping[Opcode, Mapping[str, Field]] = {
    Opcode.END: {},
    Opcode.LDPARAM: _layout(
        ("address", 32, "offset from WEIGHT_BASE in 64 bytes, multiple of a data beat"),
        ("param_word", 16, "first word of the parameter buffer"),
        ("n_words", 16, "words of eight int16"),
    ),
    Opcode.LDROPE: _layout(
        ("address", 32, "offset of the cosine and sine table from WEIGHT_BASE in 64 bytes"),
    ),
    Opcode.EMBED: _layout(
        ("address", 32, "offset of the embedding rows (int16) from WEIGHT_BASE in 64 bytes"),
        ("n_words", 16, "words of eight elements per row"),
        ("shift", 8, "left shift into the residual stream's fixed point"),
    ),
    Opcode.LMMA: _layout(
        ("address", 32, "offset of the weight words from WEIGHT_BASE in 64 bytes"),
        ("depth_tiles", 16, "depth tiles"),
        ("row_blocks", 16, "blocks of eight output rows, a multiple of the engine's rows"),
        ("planes", 8, "digits per weight; of the lookup engine 1, or 128 and the number of bits"),
        ("acc_base", 16, "first block of the accumulator buffer, likewise"),
        ("n_words", 32, "weight words: one per depth tile, engine's rows, digit and step"),
        ("shift", 8, "rounding right shift of the finished sums, at least that of a_groups"),
    ),
    Opcode.NORMQ: _layout(
        ("source", 8, "NormSource"),
        ("n_words", 16, "words of eight elements"),
        ("param_word", 16, "first word of gamma in the parameter buffer"),
        ("gamma_frac", 8, "fraction bits of gamma"),
        ("inv_n", 32, "scale 1 / N"),
        ("eps", 32, "scale of epsilon"),
        ("scale_a", 32, "scale of the source, or of the gate's weights"),
        ("scale_b", 32, "scale of the up projection's weights (GATE, SWIGLU)"),
    ),
    Opcode.ROPEQ: _layout(
        ("kv_offset", 32, "byte offset of the layer's cache from the chunk's"),
        ("scale_q", 32, "weight scale of queries times log2(e) / sqrt(head_dim)"),
        ("scale_k", 32, "weight scale of keys"),
        ("scale_v", 32, "weight scale of values"),
        ("param_word", 16, "first word of biases and gammas in the parameter buffer"),
        ("bias_frac", 8, "fraction bits of biases and centres, at most 16 (FLAG_BIAS)"),
        ("gamma_frac", 8, "fraction bits of the gammas (FLAG_QK_NORM)"),
        ("eps", 16, "epsilon in units of 2**-32 (FLAG_QK_NORM)"),
    ),
    Opcode.ATTEND: _layout(
        ("kv_offset", 32, "byte offset of the layer's cache from the chunk's"),
        ("frac", 8, "fraction bits of the output"),
        ("window", 16, "latest positions that a query sees, its own included; 0: all"),
    ),
    Opcode.RESADD: _layout(
        ("scale_w", 32, "weight scale"),
        ("n_words", 16, "words of eight elements"),
        ("frac", 8, "fraction bits of the residual stream"),
    ),
    Opcode.LOGITS: _layout(
        ("row_first", 32, "first row of the vocabulary"),
        ("n_words", 16, "words of eight rows"),
        ("param_word", 16, "first word of the row scales in the parameter buffer"),
        ("acc_base", 16, "first block of the accumulator buffer, or word of the stream"),
    ),
}


@dataclass(frozen=True)
class Instruction:
    """One decoded instruction: ``waits`` in the order of :class:`Unit`."""

    opcode: Opcode
    flags: int = 0
    waits: tuple[int, int, int, int] = (0, 0, 0, 0)
    args: Mapping[str, int] = field(default_factory=dict[str, int])


_WAITS = ("wait_load", "wait_matmul", "wait_vector", "wait_attention")


def encode(instruction: Instruction) -> bytes:
    """Return the 32 bytes, least significant first; ValueError names a field that does not fit."""
    values = {"opcode": int(instruction.opcode), "flags": instruction.flags}
    values |= dict(zip(_WAITS, instruction.waits, strict=True))
    word = 0
    layout = FIELDS[instruction.opcode]
    if set(instruction.args) != set(layout):
        raise ValueError(
            f"{instruction.opcode.name} takes {sorted(layout)}, not {sorted(instruction.args)}"
        )
    for name, spec in (*HEADER.items(), *layout.items()):
        value = int(values[name] if name in HEADER else instruction.args[name])
        count, rest = divmod(value, spec.unit)
        if rest:
            raise ValueError(
                f"{instruction.opcode.name}.{name} must be a multiple of {spec.unit}, not {value}"
            )
        if not 0 <= count < 1 << spec.width:
            raise ValueError(
                f"{instruction.opcode.name}.{name} must fit {spec.width} bits, not {count}"
            )
        word |= count << spec.start
    return word.to_bytes(INSTRUCTION_BYTES, "little")


def decode(data: bytes) -> Instruction:
    """Inverse of :func:`encode`."""
    if len(data) != INSTRUCTION_BYTES:
        raise ValueError(f"an instruction has {INSTRUCTION_BYTES} bytes, not {len(data)}")
    word = int.from_bytes(data, "little")

    def get(spec: Field) -> int:
        return spec.unit * ((word >> spec.start) & ((1 << spec.width) - 1))

    code = get(HEADER["opcode"])
    if code not in Opcode.__members__.values():
        raise ValueError(f"opcode must be one of {sorted(map(int, Opcode))}, not {code}")
    opcode = Opcode(code)
    load, matmul, vector, attention = (get(HEADER[name]) for name in _WAITS)
    args = {name: get(spec) for name, spec in FIELDS[opcode].items()}
    return Instruction(opcode, get(HEADER["flags"]), (load, matmul, vector, attention), args)
