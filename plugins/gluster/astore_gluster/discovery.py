"""Find the volumes of a Gluster host with the program ``gluster``."""

from __future__ import annotations

import errno

from lxml import etree

from astore.backend import CommandResult, Context
from astore.errors import DefinitionError, LibvirtCode, StorageError, one_line
from astore.model import DiscoveredSource, Host, Source
from astore.xml.reading import hardened_parser
from astore_gluster.servers import DEFAULT_PORT, is_volume_name

MAX_OUTPUT = 16 << 20
"""The largest XML answer, in bytes: a volume takes about 2 KiB."""

MAX_SOURCES = 20_000
"""The most volumes of one host."""


async def discover(host: Host, context: Context) -> tuple[DiscoveredSource, ...]:
    """Ask a host's glusterd for its volumes, started or not.

    :param host: a checked one; a name that begins with ``/`` is the path of glusterd's socket.
    :returns: sources without a port, as in libvirt: the port is always the default.
    :raises DefinitionError: another port than 24007, which the program cannot reach.
    :raises StorageError: glusterd does not answer, or reports an error.
    :raises CommandError: the program ``gluster`` is missing (Debian: glusterfs-cli).
    """
    if host.port not in (None, DEFAULT_PORT):
        raise DefinitionError(f"the program gluster reaches glusterd at port {DEFAULT_PORT} only", element="host")
    where = f"--glusterd-sock={host.name}" if host.name.startswith("/") else f"--remote-host={host.name}"
    result = await context.run_command(
        ("gluster", "--xml", "--mode=script", "--log-file=/dev/null", where, "volume", "info", "all"), check=False
    )
    # on the lane: a hostile server's megabytes of XML would block the event loop
    return await context.lane.run(_sources, host, result)


def _sources(host: Host, result: CommandResult) -> tuple[DiscoveredSource, ...]:
    hosts = (Host(host.name),)
    return tuple(
        DiscoveredSource("gluster", Source(hosts=hosts, directory="/", name=name)) for name in parse(host, result)
    )


def parse(host: Host, result: CommandResult) -> list[str]:
    """Return the volumes in ``gluster``'s XML, without repetition. :raises StorageError: ``gluster`` failed."""
    said = result.stderr[:4000].decode(errors="replace") + result.stdout[:4000].decode(errors="replace")
    failed = f"the volumes of Gluster host {host.name} cannot be listed"
    if result.returncode != 0:
        raise _failed(f"{failed}: {one_line(said) or f'gluster returned {result.returncode}'}", errno.ENOTCONN)
    if len(result.stdout) > MAX_OUTPUT:
        raise _failed(f"{failed}: its answer has {len(result.stdout)} bytes", errno.EMSGSIZE)
    try:
        root = etree.fromstring(result.stdout, hardened_parser())
    except etree.XMLSyntaxError as error:
        raise _failed(f"{failed}: its answer is not XML ({one_line(str(error))})", errno.EPROTO) from error
    if root.findtext("opRet") != "0":
        raise _failed(f"{failed}: {one_line(root.findtext('opErrstr') or 'no reason given')}", errno.EIO)
    names = [volume.findtext("name") or "" for volume in root.iterfind("volInfo/volumes/volume")]
    # a server's names are checked like a user's
    good = list(dict.fromkeys(name for name in names if is_volume_name(name)))
    if len(good) > MAX_SOURCES:
        raise _failed(f"{failed}: it offers more than {MAX_SOURCES}", errno.EMSGSIZE)
    return good


def _failed(message: str, number: int) -> StorageError:
    return StorageError(message, errno=number, libvirt_code=LibvirtCode.OPERATION_FAILED)
