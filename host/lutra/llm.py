"""The Python interface: load a model on a device and generate text."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutra.compile.compiler import compile_model
from lutra.compile.configure import configure
from lutra.compile.program import Program
from lutra.devices.base import ModelDevice, ProgramDevice, TileResult
from lutra.devices.choose import choose_device, next_best, notes_on
from lutra.devices.golden import GoldenDevice
from lutra.models import find_model
from lutra.models.decoder import Decoder
from lutra.open_model import open_model
from lutra.quantize.reference import reference
from lutra.text.chat_template import ChatTemplate, Message, check_messages
from lutra.text.sampling import Sampler, SamplingParams
from lutra.text.tokenizer import StreamDecoder, Tokenizer
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError

__all__ = ["LLM", "Completion", "Mismatch", "Piece", "RunStats"]

Progress = Callable[[str, float], None]


class Mismatch(LutraError):
    """The device's logits are not the golden model's."""


@dataclass(frozen=True)
class Piece:
    """One generated token and the text that it completes (empty inside a character)."""

    token: int
    text: str


@dataclass
class RunStats:
    """What one generation took; seconds are the device's alone, without check and sampling."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefill_cycles: int | None = None
    decode_cycles: int | None = None
    decode_steps: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    bit_exact: bool | None = None
    saturated: bool = False
    tokens: list[int] = field(default_factory=list[int])

    @property
    def decode_cycles_per_token(self) -> float | None:
        """Mean cycles of a decode step; None without a clock or without decode steps."""
        if self.decode_cycles is None or not self.decode_steps:
            return None
        return self.decode_cycles / self.decode_steps

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Tokens of the prompt per second of the device here."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Decode steps per second of the device here."""
        return self.decode_steps / self.decode_s if self.decode_steps and self.decode_s else None

    @property
    def simulated_cycles_per_s(self) -> float | None:
        """Simulated clock cycles per second of wall time."""
        cycles = (self.prefill_cycles or 0) + (self.decode_cycles or 0)
        seconds = self.prefill_s + self.decode_s
        return cycles / seconds if cycles and seconds else None


@dataclass(frozen=True)
class Completion:
    """A finished generation."""

    text: str
    tokens: list[int]
    stats: RunStats


class LLM:
    """A language model on a device.

    ``model`` is a shipped name or a folder; ``device`` is one of
    :data:`~lutra.devices.choose.DEVICES`, or an object of either device protocol in
    :mod:`lutra.devices.base`. ``auto`` takes the fastest that is here; :attr:`notes` says why
    it passed others over. ``threads`` are those of the device ``cpu``, one per core if left out.
    ``config``, of accelerators, is a name or an
    :class:`~lutra_golden.core.config.AcceleratorConfig`.

    ``format`` (``W4A8``) is what the model is rounded to, in groups of ``group`` weights, and
    ``engine`` the matmul engine that ``config`` is built with. Left out, a ternary model runs as it
    is (W1.58A8) on the engine ``ternary``, any other in W4A8 on the engine ``lut``; a ``config``
    that is an object keeps the engine that it has. ``kv_bits`` are those that keys and values are
    cached in, 8 or 4; left out, 8.

    With ``check`` every logit of the device is compared with the golden model's and a difference
    raises :class:`Mismatch`. ``source`` is the checkpoint, None if ``model`` is packed already;
    :attr:`rounded` is what is run of it. ``context`` limits the positions, which are at most
    4,096 unless it says otherwise.
    """

    def __init__(
        self,
        model: str | Path = "tales",
        device: str | ProgramDevice | ModelDevice = "auto",
        *,
        config: str | AcceleratorConfig = "nano",
        engine: str | None = None,
        format: str | None = None,
        group: int | None = None,
        kv_bits: int | None = None,
        context: int | None = None,
        check: bool = False,
        threads: int | None = None,
        wave: Path | None = None,
        wave_cycles: tuple[int, int] | None = None,
        progress: Progress | None = None,
    ) -> None:
        path = find_model(model)
        self.source, self.packed = open_model(path, format, group, kv_bits, context, progress)
        self.tokenizer = Tokenizer.open(path, self.packed.bos)
        if self.tokenizer.vocab_size > self.packed.vocab_size:
            raise LutraError(
                f"{path} mixes two models: its tokenizer has {self.tokenizer.vocab_size} tokens, "
                f"config.json {self.packed.vocab_size}: copy the model again"
            )
        self.eos = frozenset(self.packed.eos) | self.tokenizer.eos
        self._choice, self._progress = (config, engine), progress
        self._auto, self._threads = device == "auto", threads
        if isinstance(device, str):
            self.device, self._reasons = choose_device(
                device,
                lambda: self.config,
                threads=threads,
                wave=wave,
                wave_cycles=wave_cycles,
                progress=progress,
            )
        else:
            self.device, self._reasons = device, list[str]()
        if isinstance(self.device, ModelDevice):
            if engine is not None:
                raise LutraError(
                    f"device {self.device.name} has no matmul engine to choose: leave engine out"
                )
            if check:
                _ = self.program
        else:
            _ = self.program  # a model that does not fit is refused at once
        self._golden = GoldenDevice() if check else None
        self._loaded = False
        self._chat_template: ChatTemplate | None = None
        self.stats = RunStats()

    @property
    def notes(self) -> list[str]:
        """Why a faster device is not used, a line each."""
        return notes_on(self.device, self._reasons)

    @cached_property
    def config(self) -> AcceleratorConfig:
        """The configuration that holds the model."""
        return configure(self.packed, *self._choice)

    @cached_property
    def program(self) -> Program:
        """What accelerators execute; compiled when it is first asked for."""
        return compile_model(self.packed, self.config, self._progress)

    def load(self) -> None:
        """Put the model on the device, building what it needs; once.

        Generation does it by itself; call it to have it done, and its errors, beforehand.
        """
        if self._loaded:
            return
        while isinstance(self.device, ModelDevice):
            try:
                self.device.load_model(self.packed)
                break
            except LutraError as error:
                if not self._auto:
                    raise
                self.device, self._reasons = next_best(
                    self.device.name,
                    [*self._reasons, str(error)],
                    threads=self._threads,
                    progress=self._progress,
                )
        if not isinstance(self.device, ModelDevice):
            self.device.load(self.program)
        if self._golden is not None:
            self._golden.load(self.program)
        self._loaded = True

    @property
    def rounded(self) -> Decoder:
        """What runs, in floating point: what the logits are measured against."""
        return reference(self.packed)

    @property
    def context(self) -> int:
        """Positions of the KV cache: prompt and generated tokens together."""
        if isinstance(self.device, ModelDevice):
            return self.packed.context
        return self.program.context

    @property
    def tile(self) -> int:
        """Tokens that the device takes at once."""
        device = self.device
        return device.tile if isinstance(device, ModelDevice) else self.program.config.pass_tokens

    def stream(
        self, prompt: str, max_tokens: int | None = None, sampling: SamplingParams | None = None
    ) -> Iterator[Piece]:
        """Generate from ``prompt``; yields a piece per token as the device makes it.

        Without ``max_tokens`` it goes on until the story ends or the context is full. What the
        run took is in :attr:`stats`, also while it lasts.
        """
        return self._stream(self.tokenizer.encode(prompt), max_tokens, sampling)

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
    ) -> Iterator[Piece]:
        """The assistant's answer to ``messages`` of ``role`` and ``content``, piece by piece.

        The model's chat template makes a prompt of them. Names of special tokens in a content are
        text and do nothing. The answer ends where the model ends it, the context is full, or
        ``max_tokens`` have come.
        """
        check_messages(messages)
        as_text = self.tokenizer.as_text
        plain = [each | {"content": as_text(each["content"])} for each in map(dict, messages)]
        tokens = self.tokenizer.encode_template(self.chat_template.render(plain))
        room = max(self.context - len(tokens), 1)
        return self._stream(tokens, max_tokens and min(max_tokens, room), sampling)

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template, or one that was set; LutraError if there is none."""
        if self._chat_template is None:
            source = self.tokenizer.chat_template
            if source is None:
                raise LutraError(
                    f"the model {self.packed.name} has no chat template: it was not trained to "
                    "chat; use lutra run, or give a template with --chat-template"
                )
            self._chat_template = ChatTemplate(source, self.tokenizer.special_tokens)
        return self._chat_template

    def set_chat_template(self, source: str) -> None:
        """Use another chat template, in Jinja."""
        self._chat_template = ChatTemplate(source, self.tokenizer.special_tokens)

    def _stream(
        self, tokens: list[int], max_tokens: int | None, sampling: SamplingParams | None
    ) -> Iterator[Piece]:
        if not tokens:
            raise LutraError(
                "the prompt is empty, and this model has no token that begins a text: give some"
            )
        room = self.context - len(tokens)
        if room < 1:
            raise LutraError(
                f"the prompt has {len(tokens)} tokens, the context {self.context}: shorten the "
                f"prompt to at most {self.context - 1} tokens"
            )
        if max_tokens is not None and not 1 <= max_tokens <= room:
            raise LutraError(
                f"{max_tokens} tokens can not be generated: the prompt takes {len(tokens)} of "
                f"{self.context} positions, so -n must be 1 to {room}"
            )
        sampler = Sampler(sampling or SamplingParams())
        return self._generate(tokens, max_tokens or room, sampler)

    def generate(
        self, prompt: str, max_tokens: int | None = None, sampling: SamplingParams | None = None
    ) -> Completion:
        """Generate to the end and return the whole text."""
        text = "".join(piece.text for piece in self.stream(prompt, max_tokens, sampling))
        return Completion(text, list(self.stats.tokens), self.stats)

    def logits(self, tokens: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """All logits ``[T, V]`` of a token sequence, and what one is worth per position ``[T]``."""
        if not tokens:
            raise LutraError("there are no tokens to evaluate: give at least one")
        tile = self.tile
        results = [self._run(tokens[i : i + tile], i, 0)[0] for i in range(0, len(tokens), tile)]
        return (
            np.concatenate([result.logits for result in results]),
            np.concatenate([result.scale for result in results]),
        )

    def close(self) -> None:
        """Release the device."""
        self.device.close()
        self._loaded = False

    def _run(self, tokens: Sequence[int], position: int, first: int) -> tuple[TileResult, float]:
        self.load()
        start = time.perf_counter()
        result = self.device.run_tile(tokens, position, first)
        seconds = time.perf_counter() - start
        self.stats.saturated |= result.saturated
        if self._golden is not None:
            expected = _in_tiles(
                self._golden, tokens, position, first, self.program.config.pass_tokens
            )
            same = (
                np.array_equal(result.logits, expected.logits)
                and np.array_equal(result.scale, expected.scale)
                and np.array_equal(result.argmax, expected.argmax)
                and result.saturated == expected.saturated
            )
            self.stats.bit_exact = same
            if not same:
                where = np.argwhere(result.logits != expected.logits)
                place = (
                    f"first at position {position + first + where[0][0]}, logit {where[0][1]}"
                    if len(where)
                    else "in the scale, the arg-max or the saturation flag"
                )
                raise Mismatch(
                    f"device {self.device.name} differs from the golden model in {len(where)} of "
                    f"{result.logits.size} logits, {place}: this is a bug in the hardware or the "
                    "model, please report it with the prompt and the seed"
                )
        return result, seconds

    def _generate(self, prompt: list[int], max_tokens: int, sampler: Sampler) -> Iterator[Piece]:
        self.stats = stats = RunStats(prompt_tokens=len(prompt))
        tile, result = self.tile, None
        for i in range(0, len(prompt), tile):
            chunk = prompt[i : i + tile]
            last = i + len(chunk) == len(prompt)
            result, seconds = self._run(chunk, i, len(chunk) - 1 if last else len(chunk))
            stats.prefill_s += seconds
            stats.prefill_cycles = _add(stats.prefill_cycles, result.cycles)
        decoder, position = StreamDecoder(self.tokenizer, prompt), len(prompt)
        while result is not None:
            token = sampler(result.logits[-1], float(result.scale[-1]))
            stats.tokens.append(token)
            stats.generated_tokens += 1
            if token in self.eos:
                break
            yield Piece(token, decoder.push(token))
            if stats.generated_tokens == max_tokens:
                break
            result, seconds = self._run([token], position, 0)
            position += 1
            stats.decode_s += seconds
            stats.decode_steps += 1
            stats.decode_cycles = _add(stats.decode_cycles, result.cycles)
        rest = decoder.flush()
        if rest and stats.tokens:
            yield Piece(stats.tokens[-1], rest)


def _in_tiles(
    device: ProgramDevice, tokens: Sequence[int], position: int, first: int, tile: int
) -> TileResult:
    """What a device with smaller tiles makes of a tile."""
    parts = [
        device.run_tile(
            tokens[i : i + tile], position + i, min(max(first - i, 0), len(tokens[i : i + tile]))
        )
        for i in range(0, len(tokens), tile)
    ]
    if len(parts) == 1:
        return parts[0]
    return TileResult(
        logits=np.concatenate([part.logits for part in parts]),
        scale=np.concatenate([part.scale for part in parts]),
        argmax=np.concatenate([part.argmax for part in parts]),
        cycles=None,
        saturated=any(part.saturated for part in parts),
    )


def _add(total: int | None, more: int | None) -> int | None:
    return total if more is None else (total or 0) + more
