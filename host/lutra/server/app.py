"""Routes of the server: OpenAI's, vLLM's for tokens and figures."""

import json
import logging
import time
from collections.abc import AsyncGenerator, Collection, Coroutine, Iterable, Sequence
from contextlib import ExitStack, aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lutra.server.errors import FAILED, ApiError, from_validation
from lutra.server.limits import Guard
from lutra.server.page import page
from lutra.server.replies import EventStream, Json, event, until_gone
from lutra.server.schema import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingsBody,
    ErrorBody,
    GenerationBody,
    TokenizeBody,
)
from lutra.server.service import Answer, Service
from lutra.server.shapes import Shape

__all__ = ["make_app"]

_LOG = logging.getLogger("lutra.server")
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": "an error"} for status in ("4XX", "5XX")
}
_POLLED = "/status"  # of pages that watch, which would fill a log
_LOST = 499  # what nobody reads; as nginx has it in its log


def make_app(
    service: Service,
    *,
    key: str | None = None,
    hosts: Collection[str] | None = None,
    origins: Sequence[str] = (),
    log_prompts: bool = False,
) -> ASGIApp:
    """The server's application. With a ``key`` all asks for it but ``/health`` and the page at
    ``/``; ``hosts`` are the names that the server may be asked under, None for any, ``origins``
    those of web pages that may read its answers."""
    app = FastAPI(title="Lutra", docs_url=None, redoc_url=None)
    _Routes(service, log_prompts).add_to(app)
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_body)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(Exception, _fail)
    guarded: ASGIApp = _Logged(Guard(app, service.limits, key, hosts))
    if origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return guarded


class _Routes:
    """Handlers of all paths."""

    def __init__(self, service: Service, log_prompts: bool) -> None:
        self._service, self._log_prompts = service, log_prompts

    def add_to(self, app: FastAPI) -> None:
        """Let ``app`` have them."""
        for path, route in (
            ("/health", self.health),
            ("/metrics", self.metrics),
            ("/status", self.status),
            ("/v1/models", self.models),
            ("/v1/models/{model:path}", self.model),
        ):
            app.add_api_route(path, route, methods=["GET"], response_model=None, responses=_ERRORS)
            app.add_api_route(path, route, methods=["HEAD"], include_in_schema=False)
        app.add_api_route("/", self.page, methods=["GET", "HEAD"], include_in_schema=False)
        for path, route in (
            ("/v1/completions", self.completions),
            ("/v1/chat/completions", self.chat),
            ("/v1/embeddings", self.embeddings),
            ("/tokenize", self.tokenize),
            ("/detokenize", self.detokenize),
        ):
            app.add_api_route(path, route, methods=["POST"], response_model=None, responses=_ERRORS)

    async def page(self) -> Response:
        """The page to chat with the model and to watch the server."""
        return page()

    async def health(self) -> Response:
        """The state of the server: 503 while the model is loaded, and when the server ends."""
        assert self._service.llm is not None, "or it raises"
        return Json({"status": "ok"})

    async def metrics(self) -> Response:
        """Figures for Prometheus."""
        text = self._service.metrics.text()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def status(self) -> Response:
        """Live figures: requests, tokens, known prefixes, the device, its plan and its units."""
        return Json(await self._service.status.body())

    async def models(self) -> Response:
        """The one model that is served."""
        return Json({"object": "list", "data": [self._model()]})

    async def model(self, model: str) -> Response:
        """The model, by its name."""
        self._service.named(model)
        return Json(self._model())

    def _model(self) -> dict[str, object]:
        llm = self._service.llm
        facts = {
            "n_vocab": llm.packed.vocab_size,
            "n_ctx": llm.context,
            "format": str(llm.packed.format),
            "device": llm.device.name,
        }
        return {
            "id": llm.packed.name,
            "object": "model",
            "created": self._service.created,
            "owned_by": "lutra",
            "max_model_len": llm.context,
            "meta": facts,
        }

    async def completions(self, body: CompletionBody, request: Request) -> Response:
        """Texts that go on from prompts."""
        arrived = time.perf_counter()
        self._service.named(body.model)

        async def begun() -> Answer:
            prompts = [
                await self._service.tokens(each) if isinstance(each, str) else each
                for each in body.prompts
            ]
            return await self._service.answer(prompts, body, arrived)

        with ExitStack() as held:
            held.enter_context(self._service.room(len(body.prompts), body.n or 1))
            self._log(body.prompt)
            return await self._reply(body, begun(), request, arrived, held, chat=False)

    async def chat(self, body: ChatBody, request: Request) -> Response:
        """The assistant's answer to a conversation."""
        arrived = time.perf_counter()
        self._service.named(body.model)
        messages = [each.message() for each in body.messages]
        tools = [each.model_dump(exclude_none=True) for each in body.offered] or None

        async def begun() -> Answer:
            prompt = await self._service.chat_tokens(messages, tools)
            return await self._service.answer([prompt], body, arrived)

        with ExitStack() as held:
            held.enter_context(self._service.room(1, body.n or 1))
            self._log(messages)
            return await self._reply(body, begun(), request, arrived, held, chat=True)

    async def _reply(
        self,
        body: GenerationBody,
        begun: Coroutine[Any, Any, Answer],
        request: Request,
        arrived: float,
        held: ExitStack,
        *,
        chat: bool,
    ) -> Response:
        """A stream, which takes over what is ``held``, or a whole answer; once it has ``begun``."""
        n, seconds = body.n or 1, self._service.limits.seconds
        offered = [each.function.name for each in body.offered]
        try:
            answer = await until_gone(request.receive, begun, seconds, arrived)
            shape = Shape(self._service.llm.packed.name, chat, offered, body.most_calls)
            if body.stream:
                counted = body.stream_options is not None and body.stream_options.include_usage
                events = _events(answer, shape, n, counted)
                return EventStream(events, seconds, arrived, held.pop_all())
            await until_gone(request.receive, _exhaust(answer), seconds, arrived)
        except ConnectionError:
            return Response(status_code=_LOST)
        return Json(shape.whole(answer.completions, n))

    async def embeddings(self, body: EmbeddingsBody) -> Response:
        """A refusal: a model that goes on from texts has none that are worth anything."""
        name = self._service.named(body.model).packed.name
        raise ApiError(
            404,
            f"the model {name} makes no embeddings: it was trained to continue texts",
            param="model",
            code="model_not_supported",
        )

    async def tokenize(self, body: TokenizeBody) -> Response:
        """Tokens of a text, or of a conversation."""
        llm = self._service.named(body.model)
        if body.messages is not None:
            tokens = await self._service.chat_tokens([each.message() for each in body.messages])
        else:
            field = "prompt" if body.content is None else "content"
            text = body.prompt or body.content or ""
            tokens = await self._service.tokens(text, body.add_special_tokens, field)
        return Json({"tokens": tokens, "count": len(tokens), "max_model_len": llm.context})

    async def detokenize(self, body: DetokenizeBody) -> Response:
        """The text of tokens, without special ones."""
        llm = self._service.named(body.model)
        most = llm.packed.vocab_size
        wrong = next((each for each in body.tokens if each >= most), None)
        if wrong is not None:
            raise ApiError(
                400, f"token {wrong} is outside the vocabulary: give ids from 0 to {most - 1}",
                param="tokens",
            )  # fmt: skip
        text = await self._service.text_work(lambda: llm.tokenizer.decode(body.tokens))
        return Json({"prompt": text, "content": text})

    def _log(self, prompt: object) -> None:
        if self._log_prompts:
            _LOG.info("prompt %s", json.dumps(prompt))


async def _exhaust(answer: Answer) -> None:
    async with aclosing(answer.pieces()) as pieces:
        async for _ in pieces:
            pass


async def _events(
    answer: Answer, shape: Shape, n: int, counted: bool
) -> AsyncGenerator[Iterable[bytes], None]:
    """Events of each piece."""
    more = {"usage": None} if counted else {}
    begun: set[int] = set()
    async with aclosing(answer.pieces()) as pieces:
        async for choice, piece in pieces:
            chunks = [shape.piece(choice, piece)]
            if shape.chat and choice not in begun:
                begun.add(choice)
                chunks.insert(0, shape.opening(choice))
            yield [event(each | more) for each in chunks if each is not None]
    if counted:
        yield [event(shape.closing(answer.completions, n))]


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Json(error.body, error.status, error.headers)


async def _refuse_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _refuse(request, from_validation(error.errors()))


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    fault = error.__cause__
    words = {
        400: f"the body is not JSON in UTF-8: see byte {fault.start}"
        if isinstance(fault, UnicodeDecodeError)
        else "the body is not JSON that can be read: it is nested too deeply, or has numbers that "
        "are too long",
        404: f"there is no {request.url.path} here",
        405: f"{request.url.path} is not asked with {request.method}",
    }
    message = words.get(error.status_code, str(error.detail))
    return await _refuse(request, ApiError(error.status_code, message, headers=error.headers))


async def _fail(request: Request, error: Exception) -> Response:
    """An error of the server's own, whose traceback is in its log."""
    _LOG.error("%s failed", request.scope["path"], exc_info=error)
    return await _refuse(request, ApiError(500, FAILED, code="internal_error"))


class _Logged:
    """Writes a line for each request: what was asked, the status and the seconds; no texts.

    Status that was given is only of interest to those who look for faults.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, statuses = time.perf_counter(), [_LOST]

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            # as it came, so that nothing in it breaks the line
            path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")
            seconds, status = time.perf_counter() - begun, statuses[-1]
            level = logging.DEBUG if path == _POLLED and status == 200 else logging.INFO
            _LOG.log(level, "%s %s %d %.3f s", scope["method"], path, status, seconds)
