"""The programs that mount and unmount, and their arguments: libvirt's, word for word, wherever libvirt's work.

A definition's host, directory, target and options become arguments of programs here, so they are checked here.
"""

from __future__ import annotations

import re

from astore.errors import DefinitionError, printable
from astore.model import PoolDef
from astore.model.definitions import shown_option
from astore.names import check_host, check_path
from astore_netfs.options import check_options, is_anonymous, split_credentials

FORMATS = ("auto", "nfs", "glusterfs", "cifs")
"""The source formats, the default first."""

PROTOCOL_FORMATS = ("auto", "nfs")
"""Those that know ``<protocol ver=…>``."""

_ALWAYS = "nodev,nosuid,noexec"
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.]*")
_SHELL = re.compile(r"[\s\\*?\[]")


def mount_argv(definition: PoolDef, credentials: str | None = None) -> list[str]:
    """The command that mounts a netfs pool's source on its target.

    A password, and whose it is, are not among its arguments, which all users can see: they belong into a file.

    The arguments are those of libvirt 9.0 (``virStorageBackendFileSystemMountCmd``), except in these places: an IPv6 host
    is in brackets for NFS, whose ``HOST:DIR`` would be ambiguous without (nfs(5)); a slash before the name of a CIFS
    share is left out, since mount.cifs does not take ``//HOST//SHARE``; CIFS is mounted as a guest only where no option says
    who logs in, or how; and hosts after the first serve a glusterfs mount
    as ``backup-volfile-servers``. The helpers of glusterfs and CIFS take an IPv6 host only as it is:
    with brackets, mount.glusterfs 10.3 asks a server ``[:`` and mount.cifs 7.0 cannot resolve the name.

    :param credentials: the file with what :func:`astore_netfs.options.split_credentials` gives, if it gives any.
    :raises DefinitionError: host, directory or target is missing or cannot be handed to a program safely, or an option is
        refused.
    """
    check_source(definition)
    kind = source_format(definition)
    options = [_ALWAYS]
    if kind == "glusterfs":
        options.append("direct-io-mode=1")
    elif kind == "cifs" and is_anonymous(definition, kind):
        options.append("guest")
    if definition.source.protocol_version:
        options.append(f"nfsvers={definition.source.protocol_version}")
    options += split_credentials(definition, kind)[0]
    if credentials is not None:
        options.append(f"credentials={credentials}")
    if kind == "glusterfs" and len(definition.source.hosts) > 1:
        others = ":".join(_bracketed(host.name) for host in definition.source.hosts[1:])
        options.append(f"backup-volfile-servers={others}")
    argv = ["mount", "-o", ",".join(options)]
    if kind != "auto":
        argv += ["-t", kind]
    return [*argv, mount_source(definition), target_path(definition)]


def umount_argv(definition: PoolDef) -> list[str]:
    """The command that unmounts a netfs pool's target, unless it is in use."""
    return ["umount", target_path(definition)]


def mount_source(definition: PoolDef) -> str:
    """What is mounted, from the first host: ``HOST:DIR``, or ``//HOST/DIR`` for CIFS; DIR as it was written."""
    return _source(source_format(definition), definition.source.hosts[0].name, definition.source.directory or "")


def mount_sources(definition: PoolDef) -> frozenset[str]:
    """All the ways in which mountinfo may spell the definition's source, in :func:`plain_source`'s form."""
    kind = source_format(definition)
    directory = definition.source.directory or ""
    spelled = set()
    for host in definition.source.hosts:
        bare = check_host(host.name)
        for name in (bare, _bracketed(bare)):
            if kind == "cifs":
                spelled.add(plain_source(f"//{name}/{directory.lstrip('/')}"))
            else:  # with and without the slash is one volume to Gluster; NFS adds it
                spelled.add(plain_source(f"{name}:{directory}"))
                spelled.add(plain_source(f"{name}:/{directory.lstrip('/')}"))
                spelled.add(plain_source(f"{name}:{directory.lstrip('/')}"))
    return frozenset(spelled)


def plain_source(source: str) -> str:
    """A mount's source without slashes at its end, except the one of ``HOST:/``."""
    bare = source.rstrip("/")
    return bare + "/" if bare.endswith(":") else bare


def source_format(definition: PoolDef) -> str:
    """The source's format, by default ``auto``."""
    return definition.source.format or FORMATS[0]


def target_path(definition: PoolDef) -> str:
    """Where the pool is mounted. :raises DefinitionError: the definition names no target."""
    if not definition.target.path:
        raise DefinitionError("a netfs pool needs a target path", element="target")
    return definition.target.path


def _source(kind: str, host: str, directory: str) -> str:
    bare = check_host(host)
    if kind == "cifs":  # libvirt's third slash is what mount.cifs takes for a share without a name
        return f"//{bare}/{directory.lstrip('/')}"
    return f"{bare if kind == 'glusterfs' else _bracketed(bare)}:{directory}"


def _bracketed(host: str) -> str:
    bare = check_host(host)
    return f"[{bare}]" if ":" in bare else bare


# --------------------------------------------------------------------------------------------------------- checking


def check_source(definition: PoolDef) -> None:
    """Everything that :func:`mount_argv` makes arguments of.

    :raises DefinitionError: naming the element at fault.
    """
    source, kind = definition.source, source_format(definition)
    if kind not in FORMATS:
        raise DefinitionError(
            f"a netfs source has no format {printable(kind)!r}; it may be {', '.join(FORMATS)}", element="format"
        )
    if not source.hosts:
        raise DefinitionError("a netfs pool needs a source host", element="source")
    if len(source.hosts) > 1 and kind != "glusterfs":
        raise DefinitionError(f"a netfs source of format {kind!r} has exactly one host", element="host")
    for host in source.hosts:
        check_host(host.name)
    if not source.directory:
        raise DefinitionError("a netfs pool needs a source directory", element="source")
    check_path(source.directory, what="source directory", element="dir", absolute=False)
    check_path(target_path(definition), what="target path", element="path")
    _check_protocol(source.protocol_version, kind)
    check_options(definition, kind)
    if kind == "cifs" and ".." in re.split(r"[\\/]", source.directory):
        raise DefinitionError(f"the source directory {printable(source.directory)!r} has a '..'", element="dir")
    if kind == "glusterfs":
        _check_for_shell(definition)


def _check_protocol(version: str | None, kind: str) -> None:
    if version is None:
        return
    if kind not in PROTOCOL_FORMATS:
        raise DefinitionError(f"a netfs source of format {kind!r} has no protocol version", element="protocol")
    if not _VERSION.fullmatch(version):
        raise DefinitionError(f"{printable(version)!r} is no protocol version", element="protocol")


def _check_for_shell(definition: PoolDef) -> None:
    # mount.glusterfs is a shell script that splits what it is given at blanks and expands patterns in it: a target
    # "/mnt/x --log-file=/etc/passwd" would be two arguments of the client.
    if ":" in (definition.source.directory or ""):  # and takes what follows the last colon for the volume
        raise DefinitionError("a glusterfs source directory has no ':'", element="dir")
    words = {
        "dir": (definition.source.directory or "",),
        "path": (definition.target.path or "",),
        "option": definition.mount_options,
    }
    for element, values in words.items():
        for value in values:
            if _SHELL.search(value):
                raise DefinitionError(
                    f"{printable(shown_option(value))!r} has blanks, backslashes or pattern characters, which the mount "
                    f"helper of glusterfs does not take",
                    element=element,
                )
