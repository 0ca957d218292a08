"""Find the sources of a host: its NFS exports and its Gluster volumes."""

from __future__ import annotations

import asyncio
import errno
import re

from lxml import etree

from astore.backend import CommandResult, Context
from astore.errors import CommandError, DefinitionError, LibvirtCode, StorageError, one_line, reason
from astore.model import DiscoveredSource, Host, Source
from astore.names import check_host
from astore.xml.reading import hardened_parser

_EXPORT = re.compile(r"(/.*\S)\s+\S+|(/\S*)\s*")
MAX_OUTPUT = 4 << 20
"""The most bytes of a program's output; a program that writes more is killed."""

MAX_SOURCES = 20_000
"""The most exports, or volumes, of one host."""

_LONGEST_LINE = 8192
"""The longest line of showmount's, in characters: PATH_MAX (limits.h) is 4,096."""


async def discover_sources(host: str | None, context: Context) -> tuple[DiscoveredSource, ...]:
    """Ask a host for its NFS exports (``showmount``) and its Gluster volumes (``gluster``), both at once.

    One answer is enough.

    :raises DefinitionError: no host, or an invalid one.
    :raises StorageError: the host answers neither. CommandError: neither program is installed.
    :raises LaneTimeoutError: the host did not answer in time.
    """
    if not host:
        raise DefinitionError(
            "finding netfs sources needs a host", element="host", libvirt_code=LibvirtCode.INVALID_ARG
        )
    name = check_host(host)
    commands = (
        ("nfs", ["showmount", "--no-headers", "--exports", name]),
        ("glusterfs", ["gluster", "--xml", "volume", "info", "all", f"--remote-host={name}"]),
    )
    answers = await asyncio.gather(*(_ask(argv, context) for _, argv in commands))
    found: list[DiscoveredSource] = []
    failures: list[Exception] = []
    for (kind, _), answer in zip(commands, answers, strict=True):
        if isinstance(answer, Exception):
            failures.append(answer)
            continue
        try:
            # on the lane: a hostile server's megabytes would block the event loop
            found += await context.lane.run(_sources, name, kind, answer.stdout)
        except StorageError as error:
            failures.append(error)
    if len(failures) == len(commands):
        raise _worst(name, failures)
    return tuple(found)


async def _ask(argv: list[str], context: Context) -> CommandResult | Exception:
    try:
        return await context.run_command(argv, timeout=context.timeout, max_output=MAX_OUTPUT)
    except (CommandError, OSError) as error:
        return error


def _sources(host: str, kind: str, output: bytes) -> list[DiscoveredSource]:
    """Return the sources in a program's output. :raises StorageError: it is malformed, or lists too many."""
    directories = _exports(output) if kind == "nfs" else _volumes(output)
    if len(directories) > MAX_SOURCES:
        raise StorageError(f"{host} offers more than {MAX_SOURCES} sources of format {kind}", errno=errno.EMSGSIZE)
    hosts = (Host(host),)
    return [
        DiscoveredSource("netfs", Source(hosts=hosts, directory=directory, format=kind)) for directory in directories
    ]


def _worst(host: str, failures: list[Exception]) -> Exception:
    """Return the error to raise if both programs failed: the host's error before a missing program's."""
    said = [error for error in failures if not (isinstance(error, CommandError) and error.returncode is None)]
    if not said:
        return failures[0]
    for error in said:
        if isinstance(error, TimeoutError):
            return error
    error = StorageError(
        f"{host} offers no sources: {reason(said[0])}",
        errno=errno.EHOSTUNREACH,
        libvirt_code=LibvirtCode.OPERATION_FAILED,
    )
    error.__cause__ = said[0]
    return error


def _exports(output: bytes) -> list[str]:
    """Return the directories in showmount's list: each line is a path and, last, its clients (showmount(8))."""
    found: dict[str, None] = {}
    for line in output[:MAX_OUTPUT].decode("utf-8", "replace").split("\n"):
        match = _EXPORT.fullmatch(line.strip()) if len(line) <= _LONGEST_LINE else None
        if match and line.isprintable():
            found[match[1] or match[2]] = None
    return list(found)


def _volumes(output: bytes) -> list[str]:
    """Return the names of volumes in the output of ``gluster --xml volume info``.

    :raises StorageError: it is malformed, or reports an error.
    """
    if len(output) > MAX_OUTPUT:
        raise StorageError("gluster's answer is too long", errno=errno.EMSGSIZE)
    try:
        root = etree.fromstring(output, hardened_parser())
    except etree.XMLSyntaxError as error:
        raise StorageError(f"gluster's answer is not XML: {one_line(str(error))}", errno=errno.EPROTO) from error
    result = (root.findtext("opRet") or "").strip()
    if root.tag != "cliOutput" or result != "0":
        said = (root.findtext("opErrstr") or "").strip() or f"opRet {result or 'missing'}"
        raise StorageError(f"gluster: {one_line(said)}", errno=errno.EREMOTEIO)
    names: dict[str, None] = {}
    for element in root.iterfind("volInfo/volumes/volume/name"):
        name = (element.text or "").strip()
        if name and name.isprintable() and "/" not in name:
            names[name] = None
    return list(names)
