"""The application: routes, errors and what stands before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from vistoken import __version__
from vistoken.serve.chat import ChatRoute, explained
from vistoken.serve.engine.protocol import Engine
from vistoken.serve.errors import RequestError
from vistoken.serve.fetch import SafeFetch
from vistoken.serve.gate import Gate
from vistoken.serve.metrics import MeterRequests, Meters
from vistoken.serve.pictures import Fetch
from vistoken.serve.schema import ChatCompletion, ChatRequest, ErrorBody, Health, ModelList
from vistoken.serve.settings import ServeSettings

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "The request cannot be answered; the message says why.",
        401: "No API key, or an unknown one.",
        404: "No such model.",
        408: "The body came too slowly.",
        413: "The body is too long.",
        415: "The body is not JSON.",
        429: "Too much to do; Retry-After says when to come back.",
        503: "Shutting down.",
        504: "The answer took too long.",
    }.items()
}
# FastAPI would promise a 422 of its own shape, which never comes.
_REFUSALS["4XX"] = {"model": ErrorBody, "description": "Another refusal; the message says why."}


def create_app(
    engines: Engine | Mapping[str, Engine],
    settings: ServeSettings | None = None,
    *,
    fetch: Fetch | None = None,
    extend: Callable[[FastAPI], FastAPI] | None = None,
) -> FastAPI:
    """Make the application.

    Args:
        engines: What answers: one engine, or several by name.
        settings: What is allowed.
        fetch: Gets pictures by URL where the settings allow it; a :class:`SafeFetch` within their
            limits when None.
        extend: Receives the application before its gate is put in front, to add pages.

    Returns:
        An ASGI application; when it shuts down it closes the engines, which finish what they have.
    """
    settings = settings or ServeSettings()
    served = dict(engines) if isinstance(engines, Mapping) else {engines.name: engines}
    meters = Meters(served)
    if not settings.image_urls:
        fetch = None
    elif fetch is None:
        fetch = SafeFetch(
            settings.image_url_bytes, settings.image_url_timeout_s, settings.image_url_redirects
        )
    chat = ChatRoute(served, settings, meters, fetch)
    app = FastAPI(
        title="vistoken",
        version=__version__,
        lifespan=_lifespan(served, chat),
        # their pages load scripts from elsewhere
        docs_url=None,
        redoc_url=None,
    )

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_REFUSALS)
    async def chat_completions(asked: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await chat(asked, request)

    @app.get("/v1/models", responses={401: _REFUSALS[401], 429: _REFUSALS[429]})
    async def models() -> ModelList:
        """List what is served."""
        return ModelList.model_validate({"data": [e.describe() for e in served.values()]})

    @app.get("/health")
    async def health() -> Health:
        """Say that the server is there."""
        return Health()

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """Tell Prometheus."""
        return Response(meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _handle_errors(app)
    if extend is not None:
        app = extend(app)
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(MeterRequests, meters=meters)
    return app


def _lifespan(
    engines: Mapping[str, Engine], chat: ChatRoute
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        chat.close()
        for engine in engines.values():
            engine.close()

    return lifespan


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return _respond(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _respond(_first_fault(error))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        response = _respond(RequestError(str(error.detail), error.status_code))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return _respond(explained(error))


def _respond(error: RequestError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


def _first_fault(error: RequestValidationError) -> RequestError:
    """The first thing that is wrong with a body, in one sentence."""
    faults = error.errors()
    first = faults[0]
    place = ".".join(str(step) for step in first["loc"] if step != "body")[:200]
    if first["type"] == "json_invalid":
        return RequestError("the request body is not valid JSON", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return RequestError(
            f"the field {place} is unknown here; leave it out", code="unknown_field", param=place
        )
    said = str(first["msg"])
    more = f" ({len(faults) - 1} more faults)" if len(faults) > 1 else ""
    return RequestError(
        f"{place or 'the body'}: {said[0].lower()}{said[1:]}{more}", param=place or None
    )
