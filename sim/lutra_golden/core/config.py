"""A configuration of the whole accelerator: parameters of its units, memory ports, clock."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.attention.attention import AttentionParams
from lutra_golden.axi.packed import PackedParams
from lutra_golden.axi.stripe import StripeParams, joined, striped
from lutra_golden.control.isa import INSTRUCTION_BYTES
from lutra_golden.control.registers import REGISTERS
from lutra_golden.core.ports import PortParams, Purpose, check_ports
from lutra_golden.matmul.engine import LANES, EngineParams
from lutra_golden.matmul.lookup import LookupParams
from lutra_golden.matmul.lut import LutParams
from lutra_golden.matmul.mac import MacParams
from lutra_golden.matmul.mixpe import MixpeParams
from lutra_golden.matmul.ternary import TernaryParams
from lutra_golden.params import check_positive, check_power_of_two
from lutra_golden.vector.heads import NORM_HEAD_DIM_MAX
from lutra_golden.vector.norm import NormParams
from lutra_golden.vector.residual import LOGIT_WIDTH
from lutra_golden.vector.unit import VectorParams

__all__ = ["ENGINES", "AcceleratorConfig"]

RTL_VERSION = 8

ENGINES: dict[str, type[EngineParams]] = {
    params.kind: params
    for params in (TernaryParams, LutParams, MixpeParams, MacParams, LookupParams)
}
"""Parameters of the matmul engines, by :attr:`AcceleratorConfig.engine`."""

_Part = TypeVar("_Part")
_Kind = TypeVar("_Kind", bound=np.generic)
_LOAD_BYTES_MAX = 64  # an embedding is a multiple of it
# fields that an engine has of its own, not of the one whose place it takes
_OWN_FIELDS = ("w_width", "max_planes", "tables", "adders", "fabric")
# part, number, and its value that leaves the hardware as it is without it
_SHAPE_NOTHING = (
    ("attention", "pair_cycles", 1),
    ("matmul", "a_groups", None),
    ("matmul", "offset_width", 0),
)


@dataclass(frozen=True, kw_only=True)
class AcceleratorConfig:
    """Parameters of every unit, memory ports, clock. Two equal configurations are one design.

    The tokens of a pass are a number of both ``matmul`` and ``attention``, and must be the same.
    :meth:`with_` changes single numbers.
    """

    name: str
    matmul: EngineParams
    attention: AttentionParams
    vector: VectorParams
    ports: tuple[PortParams, ...]
    clock_hz: int = 200_000_000

    def __post_init__(self) -> None:
        check_positive(self, "clock_hz")
        for name, kind in (
            ("matmul", EngineParams),
            ("attention", AttentionParams),
            ("vector", VectorParams),
        ):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be {kind.__name__}, not {getattr(self, name)!r}")
        check_ports(self.ports)
        attention = self.attention
        check_power_of_two(attention, "max_context")
        if self.pass_tokens != attention.pass_tokens:
            raise ValueError(
                f"pass_tokens of attention must be those of matmul ({self.pass_tokens}), "
                f"not {attention.pass_tokens}"
            )
        if self.pass_tokens > REGISTERS["TOKEN"].count:
            raise ValueError(
                f"pass_tokens must be at most {REGISTERS['TOKEN'].count}, the tokens that "
                f"registers hold, not {self.pass_tokens}"
            )
        if attention.key_width != attention.value_width:
            raise ValueError(
                f"key_width and value_width must be equal, not {attention.key_width} and "
                f"{attention.value_width}: build with 8 and 8, or 4 and 4"
            )
        if self.kv_head_bytes < self.word_bytes:
            raise ValueError(
                f"max_context must be at least {self.word_bytes // self.kv_row_bytes} (keys of a "
                f"word of {self.word_bytes} bytes), not {self.max_context}"
            )
        halves = 2 * self.logits_blocks
        if self.matmul.acc_blocks < halves:
            raise ValueError(
                f"acc_blocks must be at least {halves} (two halves, each with a word of "
                f"{self.word_bytes} bytes of logits), not {self.matmul.acc_blocks}"
            )
        if self.vector.qk_norm and self.head_dim > NORM_HEAD_DIM_MAX:
            raise ValueError(
                f"head_dim must be at most {NORM_HEAD_DIM_MAX} with qk_norm, not {self.head_dim}"
            )
        groups = self.attention_groups
        if groups is not None and groups.size % self.matmul.depth_tile:
            raise ValueError(
                f"head_dim must be a multiple of depth_tile ({self.matmul.depth_tile}) with "
                f"a_groups, not {self.head_dim}"
            )
        # its own checks
        _ = self.norm

    def with_(self, **changes: object) -> "AcceleratorConfig":
        """This configuration with whole parts changed, or numbers of them.

        A number goes to every part that has one of its name. ``engine`` puts a matmul engine of
        that kind in the place of this one, with its sizes.
        """
        changes = dict(changes)
        parts = {
            "matmul": _engine(_part(EngineParams, "matmul", changes, self.matmul), changes),
            "attention": _part(AttentionParams, "attention", changes, self.attention),
            "vector": _part(VectorParams, "vector", changes, self.vector),
        }
        whole: dict[str, object] = {}
        unknown = changes.keys() - {field.name for field in fields(self)}
        for name, part in parts.items():
            numbers = {field.name for field in fields(part)} & changes.keys()
            whole[name] = replace(part, **{number: changes[number] for number in numbers})
            unknown -= numbers
        if unknown:
            raise TypeError(f"no part of a configuration has {', '.join(sorted(unknown))}")
        own = {name: changes[name] for name in ("name", "ports", "clock_hz") if name in changes}
        return replace(self, **whole, **own)

    @property
    def engine(self) -> str:
        """Kind of the matmul engine."""
        return self.matmul.kind

    @property
    def pass_tokens(self) -> int:
        """Tokens that are processed per fetch of the weights."""
        return self.matmul.pass_tokens

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.attention.head_dim

    @property
    def n_heads(self) -> int:
        """Query heads."""
        return self.attention.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.attention.n_kv_heads

    @property
    def max_context(self) -> int:
        """Positions of a sequence."""
        return self.attention.max_context

    @property
    def attention_groups(self) -> ActivationGroups | None:
        """Groups of the attention's output, which end with its heads."""
        groups = self.matmul.a_groups
        return None if groups is None else replace(groups, size=min(groups.size, self.head_dim))

    @property
    def norm(self) -> NormParams:
        """Parameters of the norm unit."""
        return NormParams(
            gate_width=self.vector.gate_width,
            acc_width=self.matmul.acc_width,
            a_width=self.matmul.a_width,
        )

    def ports_of(self, purpose: Purpose) -> tuple[int, ...]:
        """Numbers of the ports that something goes through: one, of weights one or more."""
        return tuple(i for i, port in enumerate(self.ports) if purpose in port.purposes)

    @property
    def weight_stripe(self) -> StripeParams:
        """Lanes of the weights, each of which goes through a port of its own."""
        numbers = self.ports_of(Purpose.WEIGHTS)
        return StripeParams(n_lanes=len(numbers), beat_bytes=self.ports[numbers[0]].n_bytes)

    def weight_image(self, words: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bytes of a matrix in memory, from its weight words ``[n, bytes]``: each is padded to
        ``weight_word_bytes``, and together they are whole beats, in lanes."""
        padded = np.zeros((len(words), self.weight_word_bytes), np.uint8)
        padded[:, : words.shape[1]] = words
        return striped(self.weight_stripe, padded.reshape(-1))

    def weight_image_bytes(self, n_words: int) -> int:
        """Bytes of a matrix of so many weight words in memory."""
        return _round_up(n_words * self.weight_word_bytes, self.weight_stripe.whole_bytes)

    def weight_words(self, image: NDArray[_Kind], n_words: int) -> NDArray[_Kind]:
        """Undo :meth:`weight_image`: padded weight words ``[n_words, weight_word_bytes]``, of what
        there is one of for each byte of memory."""
        stream = joined(self.weight_stripe, image)
        return stream[: n_words * self.weight_word_bytes].reshape(n_words, -1)

    @property
    def weight_word_bytes(self) -> int:
        """Bytes that one weight word takes in memory.

        No more than it has if it is longer than a beat of its ports side by side, and as many as
        :class:`PackedParams` admits; else whole beats, or a fraction of one."""
        n_bytes, beat = -(-self.matmul.word_bits // 8), self._n_bytes(Purpose.WEIGHTS)
        if PackedParams.fits(n_bytes, beat):
            return n_bytes
        return min(_power_of_two(max(4, n_bytes)), _round_up(n_bytes, beat))

    @property
    def word_bytes(self) -> int:
        """Bytes of a data word, which instructions, keys, values and logits are moved by.

        It holds an instruction, a key of 8 bits, and the scales of a position.
        """
        return max(INSTRUCTION_BYTES, self.head_dim, self.kv_scale_bytes)

    @property
    def word_width(self) -> int:
        """Bits of a data word."""
        return 8 * self.word_bytes

    @property
    def logits_blocks(self) -> int:
        """Blocks of eight rows whose logits fill a data word: they are written by whole words."""
        return self.word_width // (LANES * LOGIT_WIDTH)

    @property
    def load_word_bytes(self) -> int:
        """Bytes that the load unit takes at once: rows of every table are whole words."""
        return min(_LOAD_BYTES_MAX, self.word_bytes, 2 * self.head_dim)

    def alignment(self, purpose: Purpose) -> int:
        """Alignment in bytes of transfers for ``purpose``: its words, and beats of its port, or of
        its ports side by side."""
        word = {Purpose.LOAD: self.load_word_bytes, Purpose.WEIGHTS: 1}
        return max(word.get(purpose, self.word_bytes), self._n_bytes(purpose))

    @property
    def align_bytes(self) -> int:
        """Bytes that ranges of memory are padded to, since beats at their ends are read whole."""
        return max(map(self.alignment, Purpose))

    def _n_bytes(self, purpose: Purpose) -> int:
        return sum(self.ports[number].n_bytes for number in self.ports_of(purpose))

    @property
    def kv_scale_bytes(self) -> int:
        """Bytes of one position's key and value scales, rounded up to a power of two."""
        return 1 << (8 * self.n_kv_heads - 1).bit_length()

    @property
    def kv_row_bytes(self) -> int:
        """Bytes of one head's key (or value) at a position."""
        return self.head_dim * self.attention.key_width // 8

    @property
    def kv_head_bytes(self) -> int:
        """Bytes of one head's keys (or values) over the whole context."""
        return self.max_context * self.kv_row_bytes

    @property
    def kv_v_offset(self) -> int:
        """Offset of the values from a layer's keys."""
        return self.n_kv_heads * self.kv_head_bytes

    @property
    def kv_s_offset(self) -> int:
        """Offset of the scales from a layer's keys."""
        return 2 * self.n_kv_heads * self.kv_head_bytes

    @property
    def kv_layer_bytes(self) -> int:
        """Bytes of one layer's KV cache, whole words and beats."""
        size = self.kv_s_offset + self.max_context * self.kv_scale_bytes
        return _round_up(size, self.alignment(Purpose.ATTENTION))

    @property
    def kv_zeroed_from(self) -> int:
        """Offset in a layer's KV cache of what must read as zero before it is written.

        Scales always: words and beats are read whole when not all of one is written. Keys and
        values too if they share a word or a beat.
        """
        shared = self.alignment(Purpose.ATTENTION) > self.kv_row_bytes
        return 0 if shared else self.kv_s_offset

    @property
    def fingerprint(self) -> int:
        """64-bit hash of everything that shapes the RTL; name and clock do not count.

        Nor do numbers of :data:`_SHAPE_NOTHING` that shape nothing, so that a design keeps its
        fingerprint when an option comes that it does not use.
        """
        content = asdict(self)
        content |= {"engine": self.engine, "rtl": RTL_VERSION}
        del content["name"], content["clock_hz"]
        # of whatever cells, the values are the same
        content["matmul"].pop("fabric", None)
        for part, name, value in _SHAPE_NOTHING:
            if content[part][name] == value:
                del content[part][name]
        text = json.dumps(content, sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _part(kind: type[_Part], name: str, changes: dict[str, object], part: _Part) -> _Part:
    """The part ``name`` out of ``changes``, or else ``part``."""
    value = changes.pop(name, part)
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, not {value!r}")
    return value


def _engine(params: EngineParams, changes: dict[str, object]) -> EngineParams:
    """The engine that ``changes`` selects, with the sizes of ``params`` and its own changes."""
    kind = changes.pop("engine", params.kind)
    if not isinstance(kind, str) or kind not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, not {kind!r}")
    sizes: dict[str, object] = {}
    if kind != params.kind:
        sizes = {
            field.name: getattr(params, field.name)
            for field in fields(EngineParams)
            if field.name not in _OWN_FIELDS
        }
        params = ENGINES[kind]()
    names = {field.name for field in fields(params)}
    sizes |= {name: value for name, value in changes.items() if name in names}
    width = sizes.get("w_width")
    if isinstance(width, int) and width > 0 and params.grouped:
        sizes.setdefault("max_planes", 8 // width)
    return replace(params, **sizes)


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
