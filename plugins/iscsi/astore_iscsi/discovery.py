"""Find the targets of a portal: an iSCSI discovery session, SendTargets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
from typing import Final

from astore.backend import Context
from astore.cancellation import bounded, shielded
from astore.errors import DefinitionError, LibvirtCode, StorageError
from astore.model import Device, DiscoveredSource, Host, Source
from astore_iscsi import libiscsi
from astore_iscsi.portals import DEFAULT_PORT, addresses_of, check_name, parse_portal, portal_of
from astore_iscsi.target.answers import Login, Told
from astore_iscsi.target.connection import connected

INITIATOR: Final = "iqn.2007-10.com.github:sahlberg:libiscsi:astore"
"""Who asks, in the way that libiscsi's own programs name themselves. Targets may tell each initiator something else."""

MAX_SOURCES: Final = 20_000
"""The most targets of one portal."""


async def discover(host: Host, context: Context, initiator: str | None = None) -> tuple[DiscoveredSource, ...]:
    """Ask a portal for its targets.

    :param initiator: who asks; it is in the sources then.
    :return: sources with the portal that was asked, and then those that the target names.
    :raises StorageError: it does not answer, or does not tell.
    """
    portal = portal_of(host)
    try:
        async with asyncio.timeout(context.timeout):
            login = Login(initiator or INITIATOR, None, secrets.randbits(40))
            addresses = await addresses_of(portal, context)
            connection = await connected(addresses, libiscsi.load(), login, context.timeout / 3)
            try:
                told = await connection.discover()
            finally:
                await shielded(bounded(connection.close()))
    except TimeoutError as error:
        raise _failed(f"no answer within {context.timeout:g} s", errno.ETIMEDOUT, host) from error
    except OSError as error:
        raise _failed(error.strerror or str(error), error.errno or errno.EIO, host) from error
    if len(told) > MAX_SOURCES:
        raise _failed(f"it offers more than {MAX_SOURCES}", errno.EMSGSIZE, host)
    sources = (source_of(one, host, initiator) for one in told)
    return tuple(sorted((one for one in sources if one is not None), key=lambda one: one.source.devices[0].path))


def source_of(told: Told, host: Host, initiator: str | None = None) -> DiscoveredSource | None:
    """Return the source of a target; None if it has an impossible name: a server's names are checked like a user's."""
    with contextlib.suppress(DefinitionError):
        name = check_name(told.name, "target", "device")
        asked = portal_of(host)
        others = dict.fromkeys(portal for text in told.portals if (portal := parse_portal(text)) not in (None, asked))
        hosts = [host, *(Host(one.host, None if one.port == DEFAULT_PORT else one.port) for one in others if one)]
        return DiscoveredSource(
            "iscsi-direct", Source(hosts=tuple(hosts), devices=(Device(name),), initiator=initiator)
        )
    return None


def _failed(why: str, number: int, host: Host) -> StorageError:
    message = f"the targets of iSCSI portal {portal_of(host)} cannot be listed: {why}"
    return StorageError(message, errno=number, libvirt_code=LibvirtCode.OPERATION_FAILED)
