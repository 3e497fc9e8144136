"""The Python interface: load a model on a device and generate text."""

import logging
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from lutra.arguments import check_kind, check_whole, either
from lutra.closing import Closing
from lutra.devices.base import Device, DeviceError, StepResult, check_tokens
from lutra.devices.choose import DeviceOptions
from lutra.devices.golden import GoldenDevice
from lutra.devices.processors import PROCESSORS
from lutra.formats.gguf import is_gguf
from lutra.models import find_model
from lutra.models.decoder import Decoder, DecoderConfig
from lutra.open_model import open_model
from lutra.process_lock import ProcessLock
from lutra.progress import StepProgress
from lutra.quantize.reference import reference
from lutra.serving.async_stream import AsyncStream
from lutra.serving.batch import MOST_AT_ONCE
from lutra.serving.engine import Engine, make_engine
from lutra.serving.generation import (
    Generation,
    check_room,
    complete,
    prefill,
    restart,
    run,
    split,
)
from lutra.serving.loaded import LoadedModel
from lutra.serving.placement import Placement
from lutra.serving.results import Completion, Piece, RunStats
from lutra.serving.sequence import Mismatch, TokenSequence
from lutra.serving.speculation.adaptive import AdaptiveSpeculation
from lutra.serving.speculation.model import ModelDrafter
from lutra.serving.speculation.ngrams import NgramDrafter
from lutra.serving.speculation.plain import Speculation
from lutra.serving.stream import Stream
from lutra.serving.together import complete_all
from lutra.text.messages import Message, check_messages
from lutra.text.sampling import SamplingParams
from lutra.text.tokenizer import Tokenizer
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.cache import Kv

if TYPE_CHECKING:
    from lutra.text.chat_template import ChatTemplate

__all__ = [
    "LLM",
    "PREFIX_BYTES",
    "SPECULATION",
    "WAYS",
    "Completion",
    "Mismatch",
    "Piece",
    "RunStats",
]

Progress = Callable[[str, float], None]
T = TypeVar("T")
WAYS = "ngram", "off"
"""Values of ``speculation``, beside another model."""
_PROBE = "The vocabulary is the same if this gives equal tokens: 3.14, naïve, x_y = f(z);"
_log = logging.getLogger(__name__)
SPECULATION = {"cpu": "ngram"}
"""The way in which tokens are guessed on a device, by its name; elsewhere none are."""
_LOGITS_TOKENS = 512  # of a text whose logits are asked for, at a time
PREFIX_BYTES = 1 << 30
"""Keys and values of known prefixes that an :class:`LLM` keeps, unless it says otherwise."""


class LLM(Closing):
    """A language model on a device.

    ``model`` is a shipped name or a folder; ``device`` is one of
    :data:`~lutra.devices.choose.DEVICES`, or an object with the methods of
    :class:`~lutra.devices.base.Device`, or several names, between which requests are divided as the
    planner has it (``["cpu:1", "golden"]``, see :mod:`lutra.serving.plans`). ``auto`` takes the
    fastest that is here, boards included, and that has room for the model; :attr:`notes` says why
    it passed others over. ``threads`` are
    those of the device ``cpu``, one per core if left out. ``config``, of accelerators, is a name or
    an :class:`~lutra_golden.core.config.AcceleratorConfig`, and ``engine`` the matmul engine that a
    named one is built with. ``emulate`` is the name of a board that takes the place of a real one,
    ``bitstream`` the file that a real one loads.

    ``format`` (``W4A8``) is what the model is rounded to, in groups of ``group`` weights. Left out,
    weights that are integers keep their bits (W1.58A8), and others have eight. ``kv_bits`` are
    those that keys and values are cached in, 8 or 4; left out, 8. ``a_group`` is how many
    activations of 8 bits share an exponent under their token's scale, 0 for one scale per token.
    With ``offsets`` those that a checkpoint's groups of weights have stay what they are. Left out,
    these two are none with a ``format``; without one they are what is closest to the checkpoint of
    what the device runs: the same checkpoint may then be packed otherwise for another device, as
    the format of :attr:`packed` and :attr:`notes` say. ``head_bits``, 4 or 8, are those of
    embedding and head as codes in groups, at most; 0 is int16 and five trits. Left out, they are
    the codes of a GGUF file that has both in some, where the device runs them. ``context``
    limits the positions, which are at most 4,096 unless it says otherwise. ``check_text`` is called
    with the tokenizer and the number of positions, before the model is packed if it has to be, to
    refuse a text that is too long. :attr:`source` is the checkpoint, :attr:`rounded` what is run of
    it.

    Every generation has a session of its own on the device, so that several threads may use one
    LLM, and several streams may take turns. Afterwards the session is kept, the latest used ones
    up to ``prefix_bytes`` of keys and values in all: a prompt that begins like one of them
    computes only what is new. Of coroutines' requests at most ``parallel`` are on the device at a
    time, the others wait.

    ``speculation`` says what guesses tokens, which are checked several in a pass; tokens are the
    same with any of it (docs/scheduling.md). ``ngram`` takes them from the text itself, ``off``
    does without, and another model of the same vocabulary, as an :class:`LLM` or what ``model`` may
    be, runs beside this one: where it is not an :class:`LLM`, on the same device if that is a
    processor, else on ``cpu``. Left out, it is what :data:`SPECULATION` has for the device.

    With ``check`` every logit of the device is compared with the golden model's and a difference
    raises :class:`Mismatch`. ``progress`` is called with what is being done and the share of it
    that is done; True shows bars. The model is loaded at once, or by :meth:`load` if ``load`` is
    false.
    """

    def __init__(
        self,
        model: str | Path = "tales",
        device: str | Device | list[str] | tuple[str, ...] = "auto",
        *,
        config: str | AcceleratorConfig | None = None,
        engine: str | None = None,
        format: str | None = None,
        group: int | None = None,
        kv_bits: Kv | None = None,
        a_group: int | None = None,
        offsets: bool | None = None,
        head_bits: int | None = None,
        context: int | None = None,
        check_text: Callable[[Tokenizer, int], object] | None = None,
        check: bool = False,
        threads: int | None = None,
        prefix_bytes: int = PREFIX_BYTES,
        parallel: int = MOST_AT_ONCE,
        wave: Path | None = None,
        wave_cycles: tuple[int, int] | None = None,
        emulate: str | None = None,
        bitstream: Path | None = None,
        speculation: "str | Path | LLM | None" = None,
        progress: Progress | bool | None = None,
        load: bool = True,
    ) -> None:
        for name, value in (
            ("context", context),
            ("group", group),
            ("a_group", a_group),
            ("head_bits", head_bits),
        ):
            if value is not None:
                check_whole(name, value)
        if format is not None:
            check_kind(format, str, f"format must be a name such as W4A8, not {format!r}")
        check_whole("prefix_bytes", prefix_bytes)
        if prefix_bytes < 0:
            raise LutraError(f"prefix_bytes must be 0 (keep none) or more, not {prefix_bytes}")
        check_whole("parallel", parallel)
        if parallel < 1:
            raise LutraError(f"parallel must be 1 request or more, not {parallel}")
        self._parallel = parallel
        self._bars = StepProgress() if progress is True else nullcontext()
        self._progress: Progress | None = None
        if isinstance(self._bars, StepProgress):
            self._progress = self._bars
        elif not isinstance(progress, bool):
            self._progress = progress
        self._check, self._prefix_bytes = check, prefix_bytes
        _check_way(speculation)
        self._speculation = speculation
        self._draft = speculation if isinstance(speculation, LLM) else None
        self._loaded: LoadedModel | None = None
        self._engine: Engine | None = None
        self._process, self._inherited = ProcessLock(), False
        self._chat_template: ChatTemplate | None = None
        self._template_source: str | None = None
        self.stats = RunStats()
        """Statistics of the generation that was started last."""

        options = DeviceOptions(
            config=config,
            engine=engine,
            threads=threads,
            wave=wave,
            wave_cycles=wave_cycles,
            emulate=emulate,
            bitstream=bitstream,
        )
        path = find_model(model)
        # reading a vocabulary is Python's work, loading a model hardly, so they share the time
        with self._bars, ThreadPoolExecutor(1) as aside:
            reading: Future[Tokenizer] | None = None
            self._placement = Placement(device, options, self._progress)

            def vocabulary(bos: int | None) -> Future[Tokenizer]:
                nonlocal reading
                reading = reading or aside.submit(Tokenizer.open, path, bos)
                return reading

            def once_checked() -> None:
                if is_gguf(path):
                    vocabulary(None)  # the file says itself what begins a text

            def checked(tokenizer: Tokenizer, vocab_size: int, context: int) -> Tokenizer:
                tokenizer.check_model(path, vocab_size)
                if check_text is not None:
                    check_text(tokenizer, context)
                return tokenizer

            def before_packing(form: Format, config: DecoderConfig) -> None:
                self._placement.check(form)
                tokenizer = vocabulary(config.bos_token_id).result()
                checked(tokenizer, config.vocab_size, config.max_position_embeddings)
                if load:
                    self._placement.prepare(form)

            self._source, self.packed = open_model(
                path, format, group, kv_bits, context, self._progress, a_group, offsets,
                self._placement.capabilities, head_bits,
                # a vocabulary or a device that is refused is so before the model is packed
                before_packing=before_packing, once_checked=once_checked,
            )  # fmt: skip
            reading = vocabulary(self.packed.bos)
            self._placement.choose(self.packed)
            if format is None and self._source is not None:
                if a_group is None:
                    self._placement.note_parts(self.packed)
                if head_bits is None:
                    self._placement.note_engine(self.packed)
            if speculation is not None and speculation not in WAYS:
                self.tokenizer = reading.result()
                self._draft = self._drafting(speculation, threads)
            if load:
                self.load()
            self.tokenizer = checked(reading.result(), self.packed.vocab_size, self.packed.context)
        self.eos = frozenset(self.packed.eos) | self.tokenizer.eos

    def __repr__(self) -> str:
        p = self.packed
        state = "" if self._loaded else ", not loaded"
        return f"<LLM {p.name} {p.format} on {self.device.name}, context {p.context}{state}>"

    # -- the device

    def load(self) -> None:
        """Put the model on the device again: after :meth:`close`, or in a forked process.

        Streams that are running cannot go on. The device ``auto`` becomes the next best one if it
        has no room for the model, or cannot be loaded.
        """
        with self._adopt(), self._bars:
            self._end()
            if self._inherited:
                self._placement.renew(self.packed)
            self._inherited = False
            self._placement.load(self.packed)
            golden = GoldenDevice() if self._check else None
            if golden is not None:
                golden.load(self.packed)
            self._loaded = LoadedModel(
                self.packed, self.device, golden, self._prefix_bytes, self._guessing()
            )

    def close(self) -> None:
        """Release the device; :meth:`load` takes it again."""
        with self._adopt():
            self._end()
            self.device.close()
            if self._draft is not None and self._draft is not self._speculation:
                self._draft.close()

    def _drafting(self, model: "str | Path | LLM", threads: int | None) -> "LLM":
        """The model whose tokens are drafts, checked for the same vocabulary."""
        draft = model
        if not isinstance(draft, LLM):
            name = self.device.name if self.device.name in PROCESSORS else "cpu"
            draft = LLM(
                draft,
                name,
                threads=threads if name == "cpu" else None,
                speculation="off",
                progress=self._progress,
                load=False,
            )
        ours, theirs = self.tokenizer, draft.tokenizer
        same = ours.own_size == theirs.own_size and ours.special_tokens == theirs.special_tokens
        if not same or ours.encode(_PROBE) != theirs.encode(_PROBE):
            raise LutraError(
                f"the model {draft.packed.name} has another vocabulary than {self.packed.name} and "
                "cannot guess its tokens: give a smaller model of the same family, or ngram"
            )
        return draft

    def _guessing(self) -> Speculation:
        """The way in which tokens are guessed on the device that is loaded."""
        way = SPECULATION.get(self.device.name) if self._speculation is None else self._speculation
        if self._draft is not None:
            if self._draft is not self._speculation:
                self._draft.load()
            loaded = self._draft._running()
            return AdaptiveSpeculation(ModelDrafter(loaded, self.packed.vocab_size))
        return AdaptiveSpeculation(NgramDrafter()) if way == "ngram" else Speculation()

    def _adopt(self) -> threading.RLock:
        if self._process.is_foreign():
            # threads of the parent may be in it for ever
            self._loaded, self._engine, self._inherited = None, None, True
        return self._process.adopt()

    def _end(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.close()

    @property
    def device(self) -> Device:
        """The device that runs the model; ``auto`` may take another when the model is loaded."""
        return self._placement.device

    @property
    def notes(self) -> list[str]:
        """Reasons why faster devices are not used, or why the device's model is less precise than
        another's, one line each."""
        return self._placement.notes

    @property
    def source(self) -> Decoder | None:
        """The checkpoint in floating point, None if the model is packed already."""
        return None if self._source is None else self._source()

    @property
    def rounded(self) -> Decoder:
        """Float reference of the packed model."""
        return reference(self.packed)

    @property
    def context(self) -> int:
        """Positions of the KV cache: prompt and generated tokens together."""
        return self.packed.context

    # -- generating

    @overload
    def generate(
        self, prompt: str, max_tokens: int | None = None, sampling: SamplingParams | None = None
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: list[str] | tuple[str, ...],
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
    ) -> list[Completion]: ...

    def generate(
        self,
        prompt: str | list[str] | tuple[str, ...],
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
    ) -> Completion | list[Completion]:
        """Generate to the end and return the whole text.

        Of several prompts, a list, all run together and share passes over the weights
        (:mod:`lutra.serving.batch`); their completions come in the order of the prompts, and are
        those of each prompt alone. Of several completions of a prompt (``n``) the first has the
        others as ``alternatives``.
        """
        if isinstance(prompt, list | tuple):
            return self._together(prompt, max_tokens, sampling)
        with self.stream(prompt, max_tokens, sampling) as stream:
            for _ in stream:
                pass
            first, *others = stream.completions
        return replace(first, alternatives=others)

    def stream(
        self, prompt: str, max_tokens: int | None = None, sampling: SamplingParams | None = None
    ) -> Stream:
        """Generate from ``prompt``; yields a piece per token as the device makes it.

        It goes on to an end token or a stop string, to ``max_tokens``, or until the context is
        full, as the last piece's ``finish_reason`` says. What it takes is in the stream's
        ``stats``, also while it lasts; ``completions`` are what has come. Several completions
        (``n``) share the keys and values of the prompt, which are computed once.

        Greedy tokens (``temperature`` 0, with nothing that changes the logits or reports them) come
        one by one, then 2, 4, 8 at a time and so on, where the device makes them without the host:
        as many as it takes :data:`~lutra.serving.pace.RUN_S` for, so that text keeps flowing and
        Ctrl-C is heard.
        With ``check`` every token is one step, as its logits are compared.
        """
        return self._stream(self.encode(prompt), max_tokens, sampling)

    async def generate_async(
        self,
        prompt: str,
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        priority: int = 0,
    ) -> Completion:
        """Like :meth:`generate`, for a coroutine; see :meth:`stream_async`."""
        stream = self.stream_async(prompt, max_tokens, sampling, priority)
        async for _ in stream:
            pass
        first, *others = stream.completions
        return replace(first, alternatives=others)

    def stream_async(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        priority: int = 0,
    ) -> AsyncStream:
        """Pieces for a coroutine, from a thread in which all requests of this LLM share passes.

        ``prompt`` is a text, or tokens that :meth:`encode` or :meth:`encode_chat` has made.
        Requests of a higher ``priority`` go first. They are there as soon as the model is loaded,
        on one device: the one of ``auto`` is not replaced any more. A stream that is closed, or
        whose task is cancelled, ends its request.
        """
        check_whole("priority", priority)
        tokens = self.encode(prompt) if isinstance(prompt, str) else self._checked(prompt)
        generation = self._generation(tokens, max_tokens, sampling)
        with self._adopt():
            loaded = self._running()
            # an error that ended all requests may be over
            if self._engine is None or self._engine.ended:
                self._engine = make_engine(loaded, self._parallel)
            return AsyncStream(
                self._engine, generation, self.tokenizer, self._ends(generation.sampling), priority
            )

    def requests(self) -> tuple[int, int]:
        """Requests of coroutines that are on the device, and those that wait for room there."""
        engine = self._engine
        return (0, 0) if engine is None else (engine.n_running, engine.n_waiting)

    def prefixes(self) -> tuple[int, int]:
        """Known prefixes, those of coroutines' requests too, and the bytes of their keys and
        values."""
        loaded, engine = self._loaded, self._engine
        found = [] if loaded is None else [loaded.known]
        found += [] if engine is None else engine.known
        kept = {id(each): each for each in found}.values()
        return sum(map(len, kept)), sum(each.n_bytes for each in kept)

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
    ) -> Stream:
        """The assistant's answer to ``messages`` of ``role`` and ``content``, piece by piece.

        The model's chat template makes a prompt of them. Names of special tokens in a content are
        text and do nothing. The answer ends where the model or a stop string ends it, the context
        is full, or ``max_tokens`` have come.
        """
        tokens = self.encode_chat(messages)
        room = max(self.context - len(tokens), 1)
        if max_tokens is not None:
            check_whole("max_tokens", max_tokens)
        return self._stream(tokens, max_tokens and min(max_tokens, room), sampling)

    def encode(self, prompt: str) -> list[int]:
        """Tokens of a prompt."""
        return self.tokenizer.encode(_text(prompt))

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[object] | None = None,
        render: Callable[[Sequence[Message], Sequence[object] | None], str] | None = None,
    ) -> list[int]:
        """Tokens of the prompt that the chat template makes of ``messages``, and of ``tools`` as
        OpenAI's API has them.

        ``render`` applies that template elsewhere, such as in a process of its own.
        """
        check_messages(messages)
        plain = self.tokenizer.all_as_text
        texts = [
            {name: value if name == "role" else plain(value) for name, value in each.items()}
            for each in messages
        ]
        offered = None if tools is None else [plain(each) for each in tools]
        return self.tokenizer.encode_template((render or self.chat_template.render)(texts, offered))

    @property
    def chat_template(self) -> "ChatTemplate":
        """The model's chat template, or one that was set; LutraError if there is none."""
        if self._chat_template is None:
            from lutra.text.chat_template import ChatTemplate

            t = self.tokenizer
            self._chat_template = ChatTemplate.of_model(
                self.packed.name, t.chat_template, t.special_tokens
            )
        return self._chat_template

    @property
    def chat_template_source(self) -> str | None:
        """That template in Jinja, None if there is none."""
        return self._template_source or self.tokenizer.chat_template

    def set_chat_template(self, source: str) -> None:
        """Use another chat template, in Jinja."""
        from lutra.text.chat_template import ChatTemplate

        kind = type(source).__name__
        check_kind(source, str, f"a chat template must be Jinja as a string, not {kind}")
        self._chat_template = ChatTemplate(source, self.tokenizer.special_tokens)
        self._template_source = source

    def logits(self, tokens: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """All logits ``[T, V]`` of a token sequence, and their scale per position ``[T]``."""
        values, scales = zip(*self.logits_by_pass(tokens), strict=True)
        return np.concatenate(values), np.concatenate(scales)

    def logits_by_pass(
        self, tokens: Sequence[int]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """The same as :meth:`logits` pass after pass, for texts whose logits are too many to be
        kept: those of so many tokens as the device takes at a time."""
        check_tokens(tokens)
        if not len(tokens):  # an array of them has no truth value
            raise LutraError("there are no tokens to evaluate: give at least one")
        if len(tokens) > self.context:
            raise LutraError(
                f"{len(tokens)} tokens exceed the context of {self.context}: give fewer"
            )
        stats = RunStats(prompt_tokens=len(tokens))
        self.stats = stats

        return self._logits(tokens, stats)

    def _logits(
        self, tokens: Sequence[int], stats: RunStats
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        def begin(
            loaded: LoadedModel,
        ) -> tuple[LoadedModel, TokenSequence, list[Sequence[int]], StepResult]:
            # all logits of a part are there at once
            size = min(loaded.device.pass_tokens, _LOGITS_TOKENS)
            sequence, parts = loaded.open(), split(tokens, size)
            try:
                result = run(loaded, sequence, parts[0], 0, stats)[0]
            except BaseException:
                sequence.close()
                raise
            return loaded, sequence, parts[1:], result

        loaded, sequence, parts, result = self._first(begin)
        try:
            yield result.logits, result.scale
            for part in parts:
                del result  # two passes need not be in memory
                result = run(loaded, sequence, part, 0, stats)[0]
                yield result.logits, result.scale
        finally:
            sequence.close()

    def _together(
        self,
        prompts: Sequence[str],
        max_tokens: int | None,
        sampling: SamplingParams | None,
    ) -> list[Completion]:
        generations: list[Generation] = []
        for i, prompt in enumerate(prompts):
            try:
                generations.append(self._generation(self.encode(prompt), max_tokens, sampling))
            except LutraError as error:
                raise LutraError(f"prompt {i}: {error}") from None
        return self._first(
            lambda loaded: complete_all(
                loaded, generations, self.tokenizer, lambda each: self._ends(each.sampling)
            )
        )

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        """Refuse what are no tokens of this model."""
        check_tokens(tokens)
        for each in tokens:
            check_whole("a token of a prompt", each)
            if not 0 <= each < self.packed.vocab_size:
                raise LutraError(
                    f"token {each} of the prompt is outside the vocabulary: give ids from 0 to "
                    f"{self.packed.vocab_size - 1}"
                )
        return list(tokens)

    def _ends(self, sampling: SamplingParams) -> Collection[int]:
        """Tokens that end a text."""
        return () if sampling.ignore_eos else self.eos

    def _stream(
        self, tokens: list[int], max_tokens: int | None, sampling: SamplingParams | None
    ) -> Stream:
        generation = self._generation(tokens, max_tokens, sampling)
        return Stream(self._generate(generation), generation)

    def _generation(
        self, tokens: list[int], max_tokens: int | None, sampling: SamplingParams | None
    ) -> Generation:
        """Refuse what cannot be generated, before anything runs."""
        if max_tokens is not None:
            check_whole("max_tokens", max_tokens)
        room = check_room(len(tokens), max_tokens, self.context)
        sampling = SamplingParams() if sampling is None else sampling
        check_kind(
            sampling,
            SamplingParams,
            f"sampling must be SamplingParams(...), not {type(sampling).__name__}: for example "
            "SamplingParams(temperature=0)",
        )
        sampling.check_vocabulary(self.packed.vocab_size)
        self.tokenizer.constraint(sampling.form, self._ends(sampling))
        stats = RunStats(prompt_tokens=len(tokens))
        return Generation(tokens, max_tokens or room, sampling, stats)

    def _running(self) -> LoadedModel:
        loaded = self._loaded
        if loaded is None:
            raise LutraError(f"the model {self.packed.name} is not loaded: call load()")
        loaded.check()
        return loaded

    def _first(self, run: Callable[[LoadedModel], T]) -> T:
        """Do what comes first; on the next best device if the one of ``auto`` fails before any
        token."""
        while True:
            loaded = self._running()
            try:
                done = run(loaded)
            except DeviceError as error:
                with self._adopt():
                    # another thread may have replaced it
                    if self._loaded is loaded:
                        said = len(self.notes)
                        if not self._placement.pass_over(error):
                            raise
                        self.load()
                        for note in self.notes[said:]:
                            _log.warning("%s", note)
                continue
            self._placement.prove()
            return done

    def _generate(self, generation: Generation) -> Generator[Piece]:
        prompt = generation.prompt
        self.stats = generation.stats
        best = generation.sampling.n_best
        begun = self._first(lambda loaded: prefill(loaded, prompt, best, generation.stats))
        loaded, sequence = begun.loaded, begun.sequence
        try:
            ends = self._ends(generation.sampling)
            yield from complete(begun, generation, self.tokenizer, ends)
            while len(generation.completions) < generation.sampling.n:
                self.stats = generation.stats = restart(begun, prompt)
                yield from complete(begun, generation, self.tokenizer, ends)
        except GeneratorExit:
            loaded.end(sequence)  # closed between two tokens
            raise
        except BaseException:
            sequence.close()  # in the middle of one
            raise
        loaded.end(sequence)


def _check_way(given: object) -> None:
    if given is not None and not isinstance(given, str | Path | LLM):
        raise LutraError(
            f"speculation must be {either(WAYS)}, or a model, not {type(given).__name__}"
        )


def _text(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise LutraError(f"a prompt must be a string, not {type(prompt).__name__}")
    return prompt
