"""A file's report: what `tunewright check` says of its rows, made in a process of its own and kept beside the file. The hosted service has none."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from tunewright import __version__
from tunewright.jobs.home import Home
from tunewright.jobs.store import File
from tunewright.serve.errors import ApiError
from tunewright.serve.files import find_file
from tunewright.serve.forms import temporary

router = APIRouter(prefix="/v1/files", tags=["files"])

Model = Annotated[str | None, Query(max_length=256, description="A base model, by whose tokens rows are counted and cut.")]

AT_ONCE = 2
"""Checks that run at one time; others wait for their turn."""
_MEMORY = 4 << 30


@router.get("/{file_id}/report", response_model=dict[str, Any])
async def report(request: Request, file_id: str, model: Model = None) -> Response:
    """What is in a training file and what is wrong with it: `ok`, rows, the ledger, faults by code and line, as `tunewright check --json` has them.

    With `model`, a base, also its tokens, what it would cut, and the rows that it could not learn. The first request waits for the check; later ones
    for the same model get what it wrote.
    """
    file = await run_in_threadpool(find_file, request, file_id)
    if file.purpose != "fine-tune":
        raise ApiError(400, "Only files of purpose 'fine-tune' hold examples that can be checked", param="file_id", code="invalid_purpose")
    state = request.app.state
    if model is not None and state.config.base_of(model) is None:
        raise ApiError(400, f"Model {model} is not one of the base models here: GET /v1/models names them", param="model", code="model_not_available")
    base = model and state.config.base_of(model)
    source = state.config.bases()[base] if base else ""
    if (body := await run_in_threadpool(_known, state.home, file, source)) is None:
        try:
            async with asyncio.timeout(state.config.limits.report_seconds), state.checking:
                # The one before may have asked for the same.
                body = await run_in_threadpool(_known, state.home, file, source) or await _made(
                    state.home, file, source, state.config.limits.report_seconds
                )
        except TimeoutError:
            text = f"There is no report within {state.config.limits.report_seconds:g} seconds. Check the file with `tunewright check`, or in parts"
            raise ApiError(400, text, param="file_id", code="report_takes_too_long") from None  # the client would try again after a 503
    # It may have been deleted meanwhile, and then nothing of it is shown or stays.
    try:
        await run_in_threadpool(find_file, request, file_id)
    except ApiError:
        state.home.report(file.id).unlink(missing_ok=True)
        raise
    return Response(body, media_type="application/json")


def _known(home: Home, file: File, source: str) -> bytes | None:
    """The report that was kept, the newest, if this version made it from these bytes for this model."""
    try:
        made_from, _, body = home.report(file.id).read_bytes().partition(b"\n")
    except OSError:
        return None
    return body if made_from == _made_from(file, source) else None


def _made_from(file: File, source: str) -> bytes:
    return f"{__version__} {file.sha256} {json.dumps(source)}".encode()


async def _made(home: Home, file: File, source: str, seconds: float) -> bytes:
    """Check a file, and keep what is found. Raises ApiError 500 where the check itself breaks."""
    with temporary(home) as path:
        command = [sys.executable, "-m", "tunewright.serve.report", str(home.file(file.id)), str(path), file.id, source, str(seconds)]
        known = {name: value for name, value in os.environ.items() if not name.startswith("TUNEWRIGHT")} | {"OMP_NUM_THREADS": "1"}  # no keys
        nothing = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*command, env=known, stdin=nothing, stdout=nothing, stderr=nothing)
        try:
            failed = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if failed:
            raise ApiError(500, "The check of this file broke off, which is a fault of ours. Try `tunewright check` on it", code="internal_error")
        return await run_in_threadpool(_keep, home, file, source, path)


def _keep(home: Home, file: File, source: str, path: Path) -> bytes:
    body = path.read_bytes()
    path.write_bytes(_made_from(file, source) + b"\n" + body)
    path.replace(home.report(file.id))
    return body


def _main(path: str, out: str, id: str, source: str, seconds: str) -> None:
    """The process: check one file, within limits that hold should nobody be there to end it. `source`: what a model is loaded by, or nothing."""
    import resource

    os.nice(5)
    most = int(float(seconds)) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, most))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    from tunewright.data.check import check

    tokens = None
    if source:
        from tunewright.models.reader import reader

        tokens = reader(source, strict=True)
    found = check(Path(path), reader=tokens).to_dict()
    del found["path"], found["validation"]  # a place on this machine, and a file that was not given
    Path(out).write_text(json.dumps({"object": "file.report", "file_id": id, **found}), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
