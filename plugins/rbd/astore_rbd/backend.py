"""The pool type ``rbd``: the images of a pool of a Ceph cluster, reached through librados and librbd."""

from __future__ import annotations

import base64
import re
from typing import ClassVar

import msgspec

from astore.backend import Backend, Context, PoolSession
from astore.blocks import block_session
from astore.errors import DefinitionError
from astore.model import Auth, Host, PoolDef, Target
from astore.names import check_host
from astore_rbd import librbd, naming
from astore_rbd.cluster import Cluster, settings_of
from astore_rbd.images.pool import RbdPool
from astore_rbd.naming import place_of

_NAME = re.compile(r"[^/@\s\x00-\x1f\x7f-][^/@\x00-\x1f\x7f]*")

_LOCAL = re.compile(
    r"(^|_)(file|path|dir|socket|keyring|keyfile|key|chroot|chdir|setuser|setgroup|args|plugins?)($|_)|_data$"
)
"""Options that name files or programs of this machine, or a secret."""


class RbdBackend(Backend):
    """Pools of the type ``rbd``."""

    type = "rbd"
    lane_threads = 8
    volume_formats: ClassVar[tuple[str, ...]] = ("raw",)

    def require(self) -> None:
        """Load the libraries. :raises BackendLoadError: they are missing or too old."""
        librbd.load()

    def check(self, definition: PoolDef) -> PoolDef:
        """Check the definition; a target is dropped: a pool of images has none.

        :raises DefinitionError: the pool's name, a host, the authentication or an option is missing or invalid.
        """
        source = definition.source
        pool, namespace = place_of(definition)
        if not pool:
            raise DefinitionError("an rbd pool needs the name of its pool", element="name")
        for name in (pool, namespace) if "/" in (source.name or "") else (pool,):
            if not _NAME.fullmatch(name):
                raise DefinitionError(f"{source.name!r} is not POOL or POOL/NAMESPACE", element="name")
        if not source.hosts:
            raise DefinitionError("an rbd pool needs the host of a monitor", element="host")
        hosts = tuple(_checked_host(host) for host in source.hosts)
        if source.auth is not None:
            _check_auth(source.auth)
        for name, value in definition.config_options:
            _check_option(name, value, definition.allowed_options)
        return msgspec.structs.replace(
            definition, source=msgspec.structs.replace(source, hosts=hosts, format=None), target=Target()
        )

    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        """Return pool, namespace and monitors, independent of the monitors' order."""
        monitors = sorted(naming.monitors(definition).split(","))
        return (("source name", definition.source.name or ""), ("source host", ",".join(monitors)))

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        """Connect to the cluster.

        :raises OSError: it does not answer or refuses the user, or there is no such pool. SecretNotFoundError.
        """
        auth = definition.source.auth
        key = None
        if auth is not None:
            key = base64.b64encode(await context.secret(auth.secret("ceph"))).decode()
        settings = settings_of(definition, key, context.timeout)

        def connect() -> Cluster:
            return Cluster(librbd.load(), settings)

        cluster = await context.lane.run(connect, discard=Cluster.close)
        allocation = definition.refresh_allocation == "default"
        pool = RbdPool(connect, cluster, context.lane, definition.source.name or "", allocation=allocation)
        return block_session(pool, context)

    disk_source = staticmethod(naming.disk_source)
    blockdev = staticmethod(naming.blockdev)
    volume_named = staticmethod(naming.volume_named)


def _checked_host(host: Host) -> Host:
    if host.port is not None and not 0 < host.port < 65536:
        raise DefinitionError(f"the port {host.port} of host {host.name!r} is not between 1 and 65535", element="host")
    return Host(check_host(host.name), host.port)


def _check_auth(auth: Auth) -> None:
    if auth.type != "ceph":
        raise DefinitionError(f"an rbd pool authenticates by 'ceph', not {auth.type!r}", element="auth")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", auth.username):
        raise DefinitionError(f"{auth.username!r} cannot be the name of a user", element="auth")
    if auth.secret_uuid is None and auth.secret_usage is None:
        raise DefinitionError("the authentication needs a secret, by uuid or usage", element="secret")


def _check_option(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_ -]+", name) or "\0" in value:
        raise DefinitionError(f"{name!r} is no option of librados", element="option")
    plain = name.replace(" ", "_").replace("-", "_")
    if plain in ("mon_host", "auth_supported") or (_LOCAL.search(plain) and name not in allowed):
        raise DefinitionError(
            f"the option {name!r} may not be set here: it names a file or a secret, or the definition says it elsewhere",
            element="option",
        )
