"""``astore pool edit``: change a definition in the user's editor."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

from astore.cancellation import shielded
from astore.cli.documents import Document
from astore.cli.exits import CliError, explain
from astore.cli.output import Answer, complain
from astore.cli.parameters import pool_argument
from astore.cli.pools import when_taken, without_backend
from astore.cli.session import Session, command
from astore.errors import AstoreError, DefinitionError

if TYPE_CHECKING:
    from astore.pools.pool import Pool


@command("edit")
@pool_argument("name")
async def edit(session: Session, name: str) -> Answer:
    """Change a pool's definition in an editor: $VISUAL, $EDITOR or vi.

    What is saved is checked before it is stored. After a mistake on a terminal, the text can be edited again.
    """
    from anyio import to_thread

    pool = session.pool(name)
    await to_thread.run_sync(session.ticker.close)
    before = pool.to_xml(inactive=True)
    draft = await to_thread.run_sync(_new_draft, pool.name, before)
    kept = False
    try:
        while True:
            text = await to_thread.run_sync(_edited, draft, abandon_on_cancel=True)
            if text == before.encode():
                return _told(session, pool, edited=False)
            try:
                await _store(session, pool, before, text)
            except (AstoreError, CliError) as error:
                if not await to_thread.run_sync(again, explain(error), abandon_on_cancel=True):
                    kept = True
                    raise CliError(f"{explain(error)}: nothing was stored; your text is in {draft}") from error
            else:
                return _told(session, pool, edited=True)
    finally:
        if not kept:
            await shielded(to_thread.run_sync(_removed, draft))


async def _store(session: Session, pool: Pool, before: str, text: bytes) -> None:
    """Define the pool anew. :raises CliError: the definition is that of another pool, or another process changed it."""
    wanted = await session.manager.check(text)
    if (wanted.name, wanted.uuid) != (pool.name, pool.uuid):
        raise DefinitionError("the name and the uuid of a pool cannot be changed", element="name")
    await session.manager.reload()
    if session.pool(pool.name).to_xml(inactive=True) != before:
        raise CliError(f"another process changed pool {pool.name!r} meanwhile")
    await session.manager.define(wanted)


def _new_draft(name: str, text: str) -> str:
    """Write a file that only this user can read, and return its path."""
    number, path = tempfile.mkstemp(prefix=f"astore-{name[:32]}-", suffix=".xml")
    with os.fdopen(number, "w") as file:
        file.write(text)
    return path


def _removed(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _edited(path: str) -> bytes:
    """Let the user edit a file. Return what is in it. :raises CliError: the editor failed."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    code = subprocess.call(["/bin/sh", "-c", f'{editor} "$1"', "astore", path])  # as git does: it may have arguments
    if code:
        raise CliError(f"the editor {editor!r} failed with exit code {code}: nothing was stored")
    with open(path, "rb") as file:
        return file.read()


def again(problem: str) -> bool:
    """Say what is wrong, and ask whether to edit again. Without a terminal the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    complain(problem)
    sys.stderr.write("astore: edit it again? [Y/n] ")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    return bool(answer) and answer.strip().lower() in ("", "y", "yes")


def _told(session: Session, pool: Pool, *, edited: bool) -> Answer:
    document: Document = {"pool": pool.name, "uuid": pool.uuid, "edited": edited}
    if not edited:
        return Answer(document, lambda output: output.line(f"pool {pool.name!r} is unchanged"))
    line = f"pool {pool.name!r} is defined anew{when_taken(pool)}"
    return Answer(document, lambda output: output.line(line), without_backend(session, [pool]))
