"""Checks of a run's registers, which are made at START, before anything is done."""

from collections.abc import Mapping, Sequence

from lutra_golden.control.chunks import ChunkEntry, chunks
from lutra_golden.control.registers import ErrorCode
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Purpose

__all__ = ["PROGRAM_WORDS_MAX", "alignments", "check_run", "fetchable"]

PROGRAM_WORDS_MAX = (1 << 24) - 1
"""Data words of the longest program: one transfer fetches it."""


def alignments(config: AcceleratorConfig) -> dict[str, int]:
    """Bytes that registers of a run must be multiples of: words, and beats of their ports."""
    fetch, load, _, weights, write = map(config.alignment, Purpose)
    return {
        "PROGRAM_BASE": fetch,
        "PROGRAM_BYTES": config.word_bytes,
        "WEIGHT_BASE": max(load, weights),
        "LOGITS_BASE": write,
        "LOGITS_STRIDE": write,
    }


def fetchable(config: AcceleratorConfig, base: int, n_bytes: int) -> bool:
    """True if one transfer fetches ``n_bytes`` at ``base``: a program, or a range to sum."""
    align, (words, rest) = config.alignment(Purpose.FETCH), divmod(n_bytes, config.word_bytes)
    return not (base % align or rest) and 1 <= words <= PROGRAM_WORDS_MAX


def check_run(
    config: AcceleratorConfig,
    registers: Mapping[str, int],
    table: Sequence[ChunkEntry],
    n_greedy: int = 0,
) -> ErrorCode:
    """The first rule that ``registers`` and chunks break; NONE if a run may start.

    A run that makes ``n_greedy`` tokens of every sequence needs the logits of each one's last
    token, and room for all but the last that it makes.
    """
    n, align = registers["N_TOKENS"], alignments(config)
    tile, more = list(chunks(table, n)), max(n_greedy - 1, 0)
    first_without = tile[0].tokens.stop if n_greedy and tile else n + 1

    def odd(*names: str) -> bool:
        return any(registers[name] % align[name] for name in names)

    broken = {
        ErrorCode.N_TOKENS: not 1 <= n <= config.pass_tokens,
        ErrorCode.LOGITS_FROM: registers["LOGITS_FROM"] >= first_without,
        ErrorCode.CHUNK: any(
            chunk.position + chunk.n_tokens + more > config.max_context for chunk in tile
        ),
        ErrorCode.PROGRAM: not fetchable(
            config, registers["PROGRAM_BASE"], registers["PROGRAM_BYTES"]
        ),
        ErrorCode.WEIGHT_BASE: odd("WEIGHT_BASE"),
        ErrorCode.LOGITS: odd("LOGITS_BASE", "LOGITS_STRIDE"),
    }
    return next((code for code, is_broken in broken.items() if is_broken), ErrorCode.NONE)
