"""`create_app`: the API's routes on a store and a home folder, behind the guard. No torch here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from tunewright import __version__
from tunewright.errors import Problem
from tunewright.jobs.home import Home
from tunewright.jobs.store import Store
from tunewright.serve import chat, completions, files, fine_tuning, metrics, models, report, uploads
from tunewright.serve.config import Answering, ServeConfig
from tunewright.serve.engine import Engine, Limits
from tunewright.serve.errors import ApiError
from tunewright.serve.guard import Guard, Keys
from tunewright.serve.metrics import Metrics
from tunewright.serve.notify import notifying
from tunewright.serve.quota import Buckets
from tunewright.serve.sweep import clear_left_overs, sweeping
from tunewright.serve.vllm import VllmEngine

log = logging.getLogger("tunewright.serve")
public = APIRouter(include_in_schema=False)
ROUTERS = (public, metrics.router, files.router, report.router, uploads.router, models.router, fine_tuning.router, chat.router, completions.router)


def create_app(config: ServeConfig, store: Store, home: Home, launcher: Any = None, engine: Engine | VllmEngine | None = None) -> FastAPI:
    """The app. The store must be migrated, the home made and locked. `launcher` starts and stops with the app, where one is given; the engine,
    which loads nothing before it is asked, closes with it.

    `app.state` holds what routes need: config, store, home, launcher, engine, resolve, buckets, metrics, checking.
    """
    app = FastAPI(
        title="Tunewright",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        responses={"4XX": {"description": "Refused", "content": {"application/json": {"schema": _ERROR}}}},
    )
    state = app.state
    state.config, state.store, state.home, state.launcher, state.engine = config, store, home, launcher, engine or _engine(config.answering)
    state.resolve = models.resolve
    state.keys = Keys(store)
    state.buckets = Buckets()
    state.metrics = Metrics(store)
    state.checking = asyncio.Semaphore(report.AT_ONCE)
    state.ready = False
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _store_error)
    app.openapi = partial(_describe, app, app.openapi)  # type: ignore[method-assign]
    app.add_middleware(Guard, config=config, keys=state.keys, buckets=state.buckets, metrics=state.metrics)
    return app


def _engine(how: Answering) -> Engine | VllmEngine:
    if how.vllm is not None:
        key = how.vllm.key.get_secret_value() if how.vllm.key else None
        return VllmEngine(how.vllm.url, key, how.vllm.adapters, how.timeout_seconds)
    bounds = {"memory": how.memory_bytes, "models": how.models_bytes}
    limits = Limits(how.slots, how.waiting, how.chunk, adapters=how.adapters, timeout=how.timeout_seconds, threads=how.threads, **bounds)
    return Engine(limits)


def _describe(app: FastAPI, describe: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """FastAPI's description, without the answers of status 422 that it supposes: here they are 400, of the shape of all others."""
    if app.openapi_schema is None:
        found = describe()
        for item in found["paths"].values():
            for operation in item.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            found.get("components", {}).get("schemas", {}).pop(name, None)
    return describe()


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = app.state
    await asyncio.to_thread(clear_left_overs, state.store, state.home)
    if state.launcher is not None:
        await asyncio.to_thread(state.launcher.start)
    with sweeping(state.store, state.home, state.config.keep_expired_days), notifying(state.store, state.config):
        state.ready = True
        yield
        state.ready = False
    await asyncio.to_thread(state.engine.close)
    if state.launcher is not None:
        await asyncio.to_thread(state.launcher.stop)


@public.get("/", response_class=PlainTextResponse)
def pointer() -> str:
    """Where one is."""
    return f"Tunewright {__version__}: the OpenAI fine-tuning API is at /v1; a client needs this address as its base_url, and a key.\n"


@public.get("/healthz")
def healthy() -> dict[str, str]:
    """The server runs."""
    return {"status": "ok"}


@public.get("/readyz")
def ready(request: Request) -> JSONResponse:
    """The server takes requests; 503 while it starts or stops."""
    ok = request.app.state.ready
    return JSONResponse({"status": "ok" if ok else "not ready"}, 200 if ok else 503)


# The shape of every refusal, for the API's description.
_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"anyOf": [_TEXT, {"type": "null"}]}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL},
        }
    },
}


def _refuse(error: ApiError) -> JSONResponse:
    return JSONResponse(error.to_dict(), error.status, error.headers)


async def _api_error(request: Request, error: Any) -> JSONResponse:
    return _refuse(error)


async def _problem(request: Request, error: Any) -> JSONResponse:
    return _refuse(ApiError(400, error.message, error.param, error.code))


async def _invalid(request: Request, error: Any) -> JSONResponse:
    """The first fault of a request, by the name of the field: `hyperparameters.n_epochs`."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    what = first["msg"].removeprefix("Value error, ")
    return _refuse(ApiError(400, f"{where or first['loc'][0]}: {what}"[:1000], where[:256] or None, "invalid_value"))


async def _http_error(request: Request, error: Any) -> JSONResponse:
    match error.status_code:
        case 404:
            text = f"Unknown request URL: {request.method} {request.url.path[:256]}"
            return _refuse(ApiError(404, text, code="unknown_url"))
        case 405:
            text = f"Not allowed to {request.method} on {request.url.path[:256]}"
            return _refuse(ApiError(405, text, code="method_not_allowed", headers=dict(error.headers or {})))
    return _refuse(ApiError(error.status_code, str(error.detail)[:1000], code="bad_request", headers=dict(error.headers or {})))


async def _store_error(request: Request, error: Any) -> JSONResponse:
    log.error("request %s: the database: %s", request.state.request_id, " ".join(str(error.orig).split())[:500])
    return _refuse(ApiError(503, "The database does not answer. Try again in a moment", code="store_unreachable", headers={"retry-after": "2"}))
