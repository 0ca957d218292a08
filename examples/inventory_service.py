"""Serve pools and volumes over HTTP, always fresh, and stream what changes.

Any ASGI server runs it. Servers wait for their streams before they end, so they need a limit for that::

    uvicorn --timeout-graceful-shutdown 3 examples.inventory_service:app
    curl localhost:8000/pools/images/volumes
    curl localhost:8000/pools/images/volumes/web.qcow2?look=true
    curl -N localhost:8000/events

The pools are those of the command ``astore``, which may add and start others while the service runs. A client
opens /events first and reads /pools then, so that it misses nothing, and reads /pools again when it is told that it ``Lagged``.
"""

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

import astore

HEARTBEAT = 15.0
"""Seconds after which a stream has a comment, if nothing happens: proxies close connections that are silent."""


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold the Manager and its watch for as long as the service runs."""
    async with astore.Manager(os.environ.get("ASTORE_STATE_DIR")) as manager, manager.watch():
        app.state.manager = manager
        app.state.run = secrets.token_hex(4)  # events are numbered anew by each run of the service
        starting = asyncio.create_task(manager.start_all())  # holds up nothing; the watch tries again what fails
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.wait([starting])


app = FastAPI(title="astore inventory", lifespan=lifespan)


async def the_manager(request: Request) -> astore.Manager:
    """Return the Manager. A coroutine, as all that FastAPI calls here: it calls plain functions on threads."""
    manager: astore.Manager = request.app.state.manager
    return manager


TheManager = Annotated[astore.Manager, Depends(the_manager)]


@app.exception_handler(astore.AstoreError)
async def refuse(_: Request, error: astore.AstoreError) -> Response:
    """Answer with an error's message: 404 if there is no such thing, 409 if the pool is inactive, 503 if its storage fails."""
    known = {astore.NotFoundError: 404, astore.InvalidStateError: 409}
    return document({"error": str(error)}, next((known[kind] for kind in type(error).mro() if kind in known), 503))


@app.get("/pools")
async def pools(manager: TheManager) -> Response:
    """List the pools: their states and sizes, and how fresh they are."""
    return document([pool.info for pool in manager.pools()])


@app.get("/pools/{name}")
async def pool(manager: TheManager, name: str) -> Response:
    return document(manager.pool(name).info)


@app.get("/pools/{name}/volumes")
async def volumes(manager: TheManager, name: str) -> Response:
    """List a pool's volumes and what could not be read, with the pool as it was at the same moment."""
    found = manager.pool(name)
    return document({"pool": found.info, "volumes": found.volumes, "errors": found.snapshot.errors})


@app.get("/pools/{name}/volumes/{volume}")
async def volume(manager: TheManager, name: str, volume: str, look: bool = False) -> Response:
    """Return a volume. With ``look``, one that the snapshot lacks is looked for in the storage."""
    found = manager.pool(name)
    return document((await found.find(volume, timeout=10.0) if look else found.volume(volume)).info)


class EventStream(StreamingResponse):
    """A response that ends its generator with itself, also if the client is gone while it waits to be read."""

    media_type = "text/event-stream"

    def __init__(self, messages: AsyncGenerator[bytes, None]) -> None:
        super().__init__(messages, headers={"Cache-Control": "no-cache"})
        self.messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self.messages):
            await super().__call__(scope, receive, send)


@app.get("/events")
async def events(manager: TheManager, last_event_id: Annotated[str | None, Header()] = None) -> EventStream:
    """Stream the events as they come; after a reconnection, those that were missed first."""
    run: str = app.state.run
    newest = manager.statistics().events.last_seq
    seen = newest if last_event_id is None else number_of(last_event_id, run, newest)
    return EventStream(messages(manager, run, newest if seen is None else seen, known=seen is not None))


async def messages(manager: astore.Manager, run: str, since: int, *, known: bool) -> AsyncGenerator[bytes, None]:
    """Yield the events after ``since`` until the Manager is closed. :param known: whether the client has seen all others."""
    async with manager.events(since) as subscription:
        yield b"retry: 1000\n" + (b"" if known else b'event: Lagged\ndata: {"event":"Lagged","missed":null}\n')
        yield b"id: %s-%d\n\n" % (run.encode(), since)
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    event = await anext(subscription)
            except TimeoutError:
                yield b": nothing new\n\n"
            except StopAsyncIteration:
                return
            else:
                yield (
                    f"event: {type(event).__name__}\nid: {run}-{event.seq}\ndata: ".encode() + encoded(event) + b"\n\n"
                )


def number_of(event_id: str, run: str, newest: int) -> int | None:
    """Return the number in an event's id; None if this run of the service did not give it."""
    of_run, _, number = event_id.partition("-")
    known = of_run == run and number.isdecimal() and len(number) <= len(str(newest)) and int(number) <= newest
    return int(number) if known else None


def document(value: Any, status: int = 200) -> Response:
    return Response(encoded(value), status, media_type="application/json")


def encoded(value: Any) -> bytes:
    """Return records as JSON."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # a path that is not UTF-8 has surrogates in it; json escapes these
        return json.dumps(msgspec.to_builtins(value)).encode()
