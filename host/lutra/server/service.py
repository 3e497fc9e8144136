"""The model behind a server: who comes in, what is made, and what it counts."""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from typing import TypeVar

from lutra.llm import LLM
from lutra.server.errors import CLOSING, ApiError, from_lutra, from_running
from lutra.server.limits import Limits
from lutra.server.metrics import Metrics
from lutra.server.schema import GenerationBody
from lutra.server.status import Status
from lutra.server.tools import OPENING
from lutra.serving.async_stream import AsyncStream
from lutra.serving.results import Completion, Piece
from lutra.text.messages import Message
from lutra.text.template_process import TemplateProcess
from lutra_golden.errors import LutraError

__all__ = ["Answer", "Service"]

T = TypeVar("T")
_SMOOTHING = 0.2  # share of the latest answer in what is expected of the next one


class Answer:
    """The completions of a request's prompts under way: an iterator of pieces, each with the number
    of its choice."""

    def __init__(
        self,
        streams: Sequence[AsyncStream],
        n: int,
        arrived: float,
        metrics: Metrics,
        named: Mapping[str, str],
    ) -> None:
        self._streams, self._n, self._arrived, self._metrics = streams, n, arrived, metrics
        self._named = named

    @property
    def completions(self) -> list[Completion]:
        """The completions that have ended, in the order of their choices."""
        return [each for stream in self._streams for each in stream.completions]

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """All pieces; requests end when this does."""
        latest: dict[int, float] = {}
        try:
            async with aclosing(self._merged()) as merged:
                async for choice, piece in merged:
                    now = time.perf_counter()
                    before = latest.get(choice)
                    self._metrics.token(
                        first=None if latest else now - self._arrived,
                        after=None if before is None else now - before,
                    )
                    latest[choice] = now
                    yield choice, piece
            self._metrics.ended(self.completions, time.perf_counter() - self._arrived)
        except (asyncio.CancelledError, GeneratorExit):
            self._metrics.stopped("abort")
            raise
        except LutraError as error:
            self._metrics.stopped("error")
            raise from_running(error, self._named) from None
        finally:
            for stream in self._streams:
                stream.close()

    async def _merged(self) -> AsyncGenerator[tuple[int, Piece], None]:
        if len(self._streams) == 1:
            async for piece in self._streams[0]:
                yield piece.index, piece
            return
        arrived: asyncio.Queue[tuple[int, Piece] | BaseException | None] = asyncio.Queue()

        async def pump(prompt: int, stream: AsyncStream) -> None:
            try:
                async for piece in stream:
                    arrived.put_nowait((prompt * self._n + piece.index, piece))
            except Exception as error:
                arrived.put_nowait(error)
            else:
                arrived.put_nowait(None)

        tasks = [asyncio.create_task(pump(i, each)) for i, each in enumerate(self._streams)]
        try:
            left = len(tasks)
            while left:
                found = await arrived.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    left -= 1
                else:
                    yield found
        finally:
            for task in tasks:
                task.cancel()


class Service:
    """A server's work with a model, once it is there: :meth:`start` has it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.closing = False
        """True when no more requests are taken."""
        self.created = int(time.time())
        self._llm: LLM | None = None
        self._metrics: Metrics | None = None
        self._status: Status | None = None
        self._template: TemplateProcess | None = None
        self._calls = False
        """True if the template knows calls of functions."""
        self._texts = ThreadPoolExecutor(2, "lutra text")
        self.inside = 0
        """Completions that are waited for."""
        self._seconds = 1.0

    def start(self, llm: LLM, template: str | None = None) -> None:
        """Take requests for a model that is loaded, with another chat ``template`` than its own if
        one is given. It is compiled in a process of its own alone."""
        source = llm.chat_template_source if template is None else template
        if source is not None:
            self._template = TemplateProcess(source, llm.tokenizer.special_tokens)
            self._calls = OPENING in source
        self._metrics = Metrics(llm.packed.name, llm.requests)
        self._status = Status(llm, self._metrics, self.limits, chats=source is not None)
        self._llm = llm

    def close(self) -> None:
        """Release what runs beside the model."""
        self._texts.shutdown(wait=False, cancel_futures=True)
        if self._status is not None:
            self._status.close()
        if self._template is not None:
            self._template.close()

    @property
    def llm(self) -> LLM:
        """The model; ApiError while it is not there."""
        wait = {"Retry-After": "1"}
        if self.closing:
            raise ApiError(503, CLOSING, code="closing", headers=wait)
        if self._llm is None:
            raise ApiError(503, "the model is being loaded", code="loading", headers=wait)
        return self._llm

    @property
    def metrics(self) -> Metrics:
        """Figures of the model; ApiError while it is not there."""
        assert self.llm is not None, "both are set together"
        assert self._metrics is not None
        return self._metrics

    @property
    def status(self) -> Status:
        """Live figures; ApiError while the model is not there."""
        assert self.llm is not None, "both are set together"
        assert self._status is not None
        return self._status

    def named(self, model: str | None) -> LLM:
        """The model, if that is the one that is asked for."""
        llm = self.llm
        if model is not None and model != llm.packed.name:
            raise ApiError(
                404, f"the model {model!r} is not here: this server has {llm.packed.name}",
                param="model", code="model_not_found",
            )  # fmt: skip
        return llm

    async def text_work(self, work: Callable[[], T]) -> T:
        """Do what takes a text's time beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._texts, work)

    async def chat_tokens(
        self, messages: Sequence[Message], tools: Sequence[object] | None = None
    ) -> list[int]:
        """Tokens of a conversation; ApiError if the model has no template, or that refuses it, or
        does not know of ``tools``."""
        llm, template = self.llm, self._template
        if template is None:
            raise ApiError(
                400,
                f"the model {llm.packed.name} has no chat template, and continues texts: ask "
                "/v1/completions, or start the server with --chat-template FILE",
                param="messages",
            )
        if tools is not None and not self._calls:
            raise ApiError(
                400,
                f"the chat template of {llm.packed.name} knows no calls ({OPENING}): leave tools "
                "out, or serve a model that was trained to call functions",
                param="tools",
            )
        try:
            return await self.text_work(lambda: llm.encode_chat(messages, tools, template.render))
        except LutraError as error:
            raise ApiError(400, str(error), param="messages") from None

    async def tokens(
        self, text: str, add_bos: bool | None = None, field: str = "prompt"
    ) -> list[int]:
        """Tokens of a text, which a request has in ``field``; see
        :meth:`lutra.text.tokenizer.Tokenizer.encode`."""
        encode = self.llm.tokenizer.encode
        try:
            return await self.text_work(lambda: encode(text, add_bos=add_bos))
        except LutraError as error:
            raise ApiError(400, str(error), param=field) from None

    @contextmanager
    def room(self, prompts: int, each: int) -> Generator[None]:
        """Keep room for the completions of some prompts, so many of ``each``, in the queue or on
        the device; ApiError if there is none."""
        n, most = prompts * each, self.limits.parallel + self.limits.queue
        if n > most:
            raise ApiError(
                400, f"prompts and n make {n} completions, more than the {most} that this server "
                "takes at once: send fewer", param="n" if each > 1 else "prompt",
            )  # fmt: skip
        if self.inside + n > most:
            self.metrics.refused()
            # when those that are inside have left, at the rate of the latest
            seconds = self.inside / self.limits.parallel * self._seconds
            raise ApiError(
                429,
                f"the queue is full ({self.inside} completions): ask again later",
                code="queue_full",
                headers={"Retry-After": str(min(max(math.ceil(seconds), 1), 60))},
            )
        self.inside += n
        begun = time.monotonic()
        try:
            yield
        finally:
            self.inside -= n
            self._seconds += _SMOOTHING * (time.monotonic() - begun - self._seconds)

    async def answer(
        self, prompts: Sequence[Sequence[int]], body: GenerationBody, arrived: float
    ) -> Answer:
        """Begin to answer the ``prompts`` of a request; ApiError for what cannot be answered."""
        llm = self.llm
        try:
            sampling = body.sampling(secrets.randbelow(1 << 32))
            # grammars may take their time
            streams = await self.text_work(
                lambda: [
                    llm.stream_async(prompt, self._most(body, len(prompt)), sampling, body.priority)
                    for prompt in prompts
                ]
            )
        except LutraError as error:
            raise from_lutra(error, tuple(type(body).model_fields), body.named) from None
        return Answer(streams, sampling.n, arrived, self.metrics, body.named)

    def _most(self, body: GenerationBody, n_prompt: int) -> int:
        """Tokens of an answer: what is asked for, or there is room for, or this server gives."""
        room = max(self.llm.context - n_prompt, 1)
        given = [each for each in (body.most_tokens, self.limits.tokens) if each is not None]
        return min([room, *given])
