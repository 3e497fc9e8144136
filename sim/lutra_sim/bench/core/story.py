"""A program with every instruction on random weights, small enough to simulate in seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.scale import pack_scale, scale_from_float
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.interpreter import Interpreter
from lutra_golden.control.isa import (
    ADDRESS_UNIT,
    FLAG_BIAS,
    FLAG_FIRST,
    FLAG_LOGITS,
    FLAG_QK_NORM,
    Instruction,
    NormSource,
    Opcode,
    Unit,
    encode,
)
from lutra_golden.control.memory import Memory
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import BOUNDARY_BYTES, Purpose
from lutra_golden.matmul.engine import SCALE_WIDTH, GroupedWeights
from lutra_golden.matmul.lookup import LookupParams
from lutra_golden.matmul.ternary import TernaryParams

__all__ = ["Story", "StorySizes"]

_RESIDUAL_FRAC = 16
_EMBED_SHIFT = 4
_GAMMA_FRAC = 12
_N_SEQUENCES = 3
_WINDOW = 3  # of the second layer's attention; the first one sees everything
_Event = tuple[Unit, int]  # a unit and its number of completed instructions


@dataclass(frozen=True, kw_only=True)
class StorySizes:
    """Sizes of a random model; its heads are as in the configuration."""

    hidden: int = 64
    intermediate: int = 96
    vocab: int = 128
    n_layers: int = 2


def _scale(x: float) -> int:
    return int(pack_scale(scale_from_float(x)))


def _whole(n_bytes: int) -> int:
    """The first boundary that is at ``n_bytes`` or behind."""
    return -(-n_bytes // BOUNDARY_BYTES) * BOUNDARY_BYTES


class Story:
    """Program and memory image of a random decoder model, and a golden device that runs it.

    Members
    -------
    golden : the interpreter; its memory is written all over, so that it can be compared
    registers : values of the 64-bit base and of the program and stride registers
    kv_bases : where the keys and values of its sequences begin
    """

    def __init__(self, config: AcceleratorConfig, sizes: StorySizes, rng: Random) -> None:
        self.config, self.sizes = config, sizes
        blocks = config.matmul.acc_blocks
        if blocks < self._blocks():
            raise ValueError(
                f"acc_blocks must be at least {self._blocks()} for a story of {sizes}, not {blocks}"
            )
        self._numpy = np.random.default_rng(rng.getrandbits(32))
        self._image, self._code = bytearray(), list[Instruction]()
        # no layer's cache begins at a boundary: bursts meet boundaries in the middle
        self._first_layer = BOUNDARY_BYTES - 5 * config.word_bytes
        self._counts = [0] * len(Unit)
        self._build()
        code = b"".join(map(encode, self._code))
        code += b"".join([encode(Instruction(Opcode.END))] * (-len(self._code) % 4))
        weights = _whole(len(code))
        kv = weights + _whole(len(self._image))
        kv_bytes = _whole(self._first_layer + sizes.n_layers * config.kv_layer_bytes)
        self.kv_bases = [kv + i * kv_bytes for i in range(_N_SEQUENCES)]
        stride = 4 * sizes.vocab + config.word_bytes
        logits = kv + _N_SEQUENCES * kv_bytes + 3 * config.word_bytes
        size = _whole(logits + config.pass_tokens * stride)
        memory = Memory(size)
        memory.write(0, bytes(size))
        memory.write(0, code)
        memory.write(weights, bytes(self._image))
        self.registers = {
            "PROGRAM_BASE": 0,
            "PROGRAM_BYTES": len(code) // config.word_bytes * config.word_bytes,
            "WEIGHT_BASE": weights,
            "LOGITS_BASE": logits,
            "LOGITS_STRIDE": stride,
        }
        self.golden = Interpreter(config, memory)
        self.golden.registers |= self.registers

    def run(self, tokens: list[int], chunks: Sequence[ChunkEntry], logits_from: int) -> None:
        """Run one tile on the golden device."""
        self.golden.tokens[: len(tokens)] = tokens
        self.golden.chunks[: len(chunks)] = chunks
        self.golden.registers |= {"N_TOKENS": len(tokens), "LOGITS_FROM": logits_from}
        self.golden.run()

    def bytes(self) -> bytes:
        """The golden device's memory."""
        return self.golden.memory.read(0, len(self.golden.memory)).tobytes()

    # -- building

    def _blocks(self) -> int:
        """Blocks of accumulators that the longest product takes, or the halves of the logits."""
        config, sizes = self.config, self.sizes
        heads = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
        # a half begins at an even block
        halves = 4 * -(-sizes.vocab // 32)
        return max(heads // 8, 2 * sizes.intermediate // 8, sizes.hidden // 8, halves)

    def _emit(self, opcode: Opcode, *after: _Event, flags: int = 0, **args: int) -> _Event:
        """Append an instruction that waits for others; return what waits for it."""
        waits = [0] * len(Unit)
        for unit, count in after:
            waits[unit] = max(waits[unit], count)
        self._code.append(Instruction(opcode, flags, tuple(waits), args))  # type: ignore[arg-type]
        unit = opcode.unit
        assert unit is not None
        self._counts[unit] += 1
        return unit, self._counts[unit]

    def _add(self, content: NDArray[np.generic], align: int) -> int:
        self._image += bytes(-len(self._image) % max(align, ADDRESS_UNIT))
        offset = len(self._image)
        self._image += content.tobytes()
        self._image += bytes(-len(self._image) % align)
        return offset

    def _int16(self, low: int, high: int, *shape: int) -> int:
        values = self._numpy.integers(low, high, shape).astype(np.int16)
        return self._add(values, self.config.word_bytes)

    def _params(self, low: int, high: int, n: int, word: int, *after: _Event) -> _Event:
        return self._emit(
            Opcode.LDPARAM,
            *after,
            address=self._int16(low, high, n),
            param_word=word,
            n_words=n // 8,
        )

    def _lmma(
        self,
        rows: int,
        depth: int,
        *after: _Event,
        planes: int = 1,
        acc_base: int = 0,
        flags: int = 0,
    ) -> _Event:
        params = self.config.matmul
        weights, shift = self._weights(rows, depth, planes)
        words = params.pack(weights, planes)
        return self._emit(
            Opcode.LMMA,
            *after,
            flags=flags,
            address=self._add(
                self.config.weight_image(words), self.config.alignment(Purpose.WEIGHTS)
            ),
            depth_tiles=-(-depth // params.tile_depth(planes)),
            row_blocks=rows // 8,
            planes=planes,
            acc_base=acc_base,
            n_words=len(words),
            shift=shift,
        )

    def _weights(self, rows: int, depth: int, planes: int) -> tuple[GroupedWeights, int]:
        """Random weights, zero behind ``depth``, and the shift that brings them to about one."""
        params, rng = self.config.matmul, self._numpy
        if isinstance(params, TernaryParams | LookupParams):
            low, high = params.integers(planes)
            w = rng.integers(max(low, -127), high + 1, (rows, depth))
            return GroupedWeights.from_integers(w), 0
        bits = planes * params.w_width
        shape = rows, -(-depth // params.depth_tile)
        middle = rng.integers(0, 1 << bits, shape)
        codes = rng.integers(0, 1 << bits, (*shape, params.depth_tile)).reshape(rows, -1)
        codes[:, depth:] = middle.repeat(params.depth_tile, axis=1)[:, depth:]
        spare = params.scale_width - SCALE_WIDTH
        scale = rng.integers(1, 16 << spare, shape)
        weights = GroupedWeights(
            codes=codes, scale=scale, zero=2 * middle, bits=bits, group=params.depth_tile
        )
        return weights, bits + 3 + spare

    def _normq(
        self, source: NormSource, n: int, word: int, *after: _Event, flags: int = 0
    ) -> _Event:
        unit = 2.0**-_RESIDUAL_FRAC
        return self._emit(
            Opcode.NORMQ,
            *after,
            flags=flags,
            source=source,
            n_words=n // 8,
            param_word=word,
            gamma_frac=_GAMMA_FRAC,
            inv_n=_scale(1 / n),
            eps=_scale(1e-5),
            scale_a=_scale(0.031 if source is NormSource.GATE else unit),
            scale_b=_scale(0.027 if source is NormSource.GATE else 0.0),
        )

    def _resadd(self, *after: _Event) -> _Event:
        return self._emit(
            Opcode.RESADD,
            *after,
            scale_w=_scale(0.043),
            n_words=self.sizes.hidden // 8,
            frac=_RESIDUAL_FRAC,
        )

    def _build(self) -> None:
        config, sizes = self.config, self.sizes
        hidden, inner = sizes.hidden, sizes.intermediate
        heads = config.n_heads * config.head_dim
        embed = self._emit(
            Opcode.EMBED,
            address=self._int16(-(1 << 14), 1 << 14, sizes.vocab, hidden),
            n_words=hidden // 8,
            shift=_EMBED_SHIFT,
        )
        rope = self._emit(
            Opcode.LDROPE,
            address=self._int16(-(1 << 15), 1 << 15, config.max_context, config.head_dim),
        )
        last = (Unit.VECTOR, 0)
        for layer in range(sizes.n_layers):
            # the second layer's parameters overwrite the first one's
            word, words = 0, {}
            for name, n in (
                ("input", hidden),
                ("attention", heads),
                ("ffn", hidden),
                ("gate", inner),
            ):
                words[name] = word, self._params(-5000, 5000, n, word, last)
                word += n // 8
            loaded, flags = (Unit.LOAD, 0), 0
            if config.vector.qkv_bias or config.vector.qk_norm:
                flags = FLAG_BIAS * config.vector.qkv_bias | FLAG_QK_NORM * config.vector.qk_norm
                n = config.vector.qkv_bias * (heads + 2 * config.n_kv_heads * config.head_dim)
                loaded = self._params(-5000, 5000, n + 2 * config.head_dim, word, last)
            norm = self._normq(
                NormSource.RESIDUAL, hidden, words["input"][0], embed, words["input"][1]
            )
            acc = self._lmma(heads + 2 * config.n_kv_heads * config.head_dim, hidden, norm)
            kv_offset = self._first_layer + layer * config.kv_layer_bytes
            queries = self._emit(
                Opcode.ROPEQ,
                acc,
                rope,
                loaded,
                flags=flags,
                kv_offset=kv_offset,
                scale_q=_scale(0.011),
                scale_k=_scale(0.033),
                scale_v=_scale(0.05),
                param_word=word,
                bias_frac=_GAMMA_FRAC,
                gamma_frac=_GAMMA_FRAC,
                eps=4295,
            )
            attended = self._emit(
                Opcode.ATTEND,
                queries,
                kv_offset=kv_offset,
                frac=_RESIDUAL_FRAC,
                window=layer * _WINDOW,
            )
            word, loaded = words["attention"]
            norm = self._normq(NormSource.ATTENTION, heads, word, attended, loaded)
            self._resadd(self._lmma(hidden, heads, norm))
            word, loaded = words["ffn"]
            norm = self._normq(NormSource.RESIDUAL, hidden, word, loaded)
            acc = self._lmma(2 * inner, hidden, norm)
            word, loaded = words["gate"]
            norm = self._normq(NormSource.GATE, inner, word, acc, loaded)
            last = self._resadd(self._lmma(hidden, inner, norm))
        loaded = self._params(-5000, 5000, hidden, 0, last)
        norm = self._normq(NormSource.RESIDUAL, hidden, 0, loaded, flags=FLAG_LOGITS)
        half, first = sizes.vocab // 2, FLAG_FIRST
        planes = config.matmul.most_planes
        for chunk in range(2):
            word = hidden // 8 + chunk * half // 8
            loaded = self._params(0, 3000, half, word, last)
            base = chunk * config.matmul.acc_blocks // 4 * 2
            acc = self._lmma(half, hidden, norm, planes=planes, acc_base=base, flags=FLAG_LOGITS)
            self._emit(
                Opcode.LOGITS,
                acc,
                loaded,
                flags=FLAG_LOGITS | first,
                row_first=chunk * half,
                n_words=half // 8,
                param_word=word,
                acc_base=base,
            )
            first = 0
        self._code.append(Instruction(Opcode.END))
