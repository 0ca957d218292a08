"""The pool type ``iscsi-direct``: the disks of an iSCSI target, reached through libiscsi on the event loop."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from astore.backend import Backend, Context, PoolSession
from astore.blocks import block_session
from astore.cancellation import bounded, shielded
from astore.errors import DefinitionError, LibvirtCode
from astore.model import DiscoveredSource, Host, PoolDef, Target
from astore_iscsi import libiscsi, naming
from astore_iscsi.discovery import discover
from astore_iscsi.portals import check_name, check_portal, portals_of
from astore_iscsi.target.answers import Login
from astore_iscsi.target.client import Client
from astore_iscsi.target.pool import IscsiPool


class IscsiBackend(Backend):
    """Pools of the type ``iscsi-direct``."""

    type = "iscsi-direct"
    volume_formats: ClassVar[tuple[str, ...]] = ()  # nobody makes volumes
    asks_as_initiator: ClassVar[bool] = True

    def require(self) -> None:
        """Load libiscsi. :raises BackendLoadError: it is missing or too old."""
        libiscsi.load()

    def check(self, definition: PoolDef) -> PoolDef:
        """Check the definition; a target path is dropped: such a pool has none.

        :raises DefinitionError: the portals, the target's or the initiator's name or the login is missing or invalid.
        """
        source = definition.source
        if not source.hosts:
            raise DefinitionError("an iscsi-direct pool needs a host", element="host")
        if len(source.devices) != 1:
            raise DefinitionError("an iscsi-direct pool needs one device: its target's name", element="device")
        if not source.initiator:
            raise DefinitionError("an iscsi-direct pool needs an initiator's name", element="initiator")
        if source.auth is not None and source.auth.type != "chap":
            raise DefinitionError(f"a login of type {source.auth.type!r} is none of iSCSI's: use chap", element="auth")
        device = msgspec.structs.replace(source.devices[0], path=check_name(source.devices[0].path, "target", "device"))
        return msgspec.structs.replace(
            definition,
            source=msgspec.structs.replace(
                source,
                hosts=tuple(check_portal(host) for host in source.hosts),
                devices=(device,),
                initiator=check_name(source.initiator, "initiator", "initiator"),
                format=None,
            ),
            target=Target(),
        )

    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        """Return the target, the initiator, which decides what it sees, and the portals, independent of their order."""
        source = definition.source
        portals = sorted(str(portal).lower() for portal in portals_of(source.hosts))
        return (
            ("source device", source.devices[0].path),
            ("source host", ",".join(portals)),
            ("initiator", source.initiator or ""),
        )

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        """Log in. :raises OSError: no portal answers, or the target refuses the login."""
        source = definition.source
        portals = portals_of(source.hosts)
        target, auth = source.devices[0].path, source.auth
        isid = secrets.randbits(40)

        async def login() -> Login:
            if auth is None:
                return Login(source.initiator or "", target, isid)
            return Login(
                source.initiator or "", target, isid, auth.username, await context.secret(auth.secret("iscsi"))
            )

        client = Client(portals, target, login, context)
        try:
            await client.connect()
        except BaseException:
            await shielded(bounded(client.close()))
            raise
        return block_session(IscsiPool(client, portals[0]), context)

    async def discover(
        self, host: str | None, context: Context, *, port: int | None = None, initiator: str | None = None
    ) -> Sequence[DiscoveredSource]:
        """Return a portal's targets, see :func:`astore_iscsi.discovery.discover`."""
        if host is None:
            raise DefinitionError(
                "discovering iscsi-direct sources needs a host", element="host", libvirt_code=LibvirtCode.INVALID_ARG
            )
        name = None if initiator is None else check_name(initiator, "initiator", "initiator")
        return await discover(check_portal(Host(host, port)), context, name)

    disk_source = staticmethod(naming.disk_source)
    blockdev = staticmethod(naming.blockdev)
    volume_named = staticmethod(naming.volume_named)
