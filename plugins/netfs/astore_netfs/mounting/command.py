"""The commands that mount and unmount a netfs source: libvirt's arguments, wherever they work.

The definition's host, directory, target and options become arguments here, and are checked here.
"""

from __future__ import annotations

import re

from astore.errors import DefinitionError, printable
from astore.model import PoolDef
from astore.model.definitions import shown_option
from astore.names import check_host, check_path
from astore_netfs.mounting.options import check_options, is_anonymous, split_credentials

FORMATS = ("auto", "nfs", "glusterfs", "cifs")
"""The source formats, the default first."""

_ALWAYS = "nodev,nosuid,noexec"
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.]*")
_SHELL = re.compile(r"[\s\\*?\[]")


def mount_argv(definition: PoolDef, credentials: str | None = None) -> list[str]:
    """Return the command that mounts a netfs pool's source on its target.

    Passwords and the logins that go with them are not among its arguments, which all users can see; they belong in a
    file.

    The arguments are those of libvirt 9.0 (``virStorageBackendFileSystemMountCmd``), with these exceptions. An IPv6
    host is in brackets for NFS, whose ``HOST:DIR`` would otherwise be ambiguous (nfs(5)). A slash before the name of a
    CIFS share is dropped, since mount.cifs does not accept ``//HOST//SHARE``. CIFS is mounted as a guest only if no
    option says how to log in. Hosts after the first serve a glusterfs mount as ``backup-volfile-servers``. The helpers
    of glusterfs and CIFS get an IPv6 host without brackets: with them, mount.glusterfs 10.3 asks a server ``[:`` and
    mount.cifs 7.0 cannot resolve the name.

    :param credentials: the path of the file with the credentials of :func:`astore_netfs.mounting.options.split_credentials`, if
        any.
    :raises DefinitionError: host, directory or target is missing or unsafe as an argument, or an option is refused.
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
    """Return the command that unmounts a netfs pool's target; it fails while the mount is in use."""
    return ["umount", target_path(definition)]


def mount_source(definition: PoolDef) -> str:
    """Return the source from the first host: ``HOST:DIR``, or ``//HOST/DIR`` for CIFS; DIR as it was written."""
    kind, directory = source_format(definition), definition.source.directory or ""
    host = check_host(definition.source.hosts[0].name)
    if kind == "cifs":  # mount.cifs takes libvirt's third slash for a share without a name
        return f"//{host}/{directory.lstrip('/')}"
    return f"{host if kind == 'glusterfs' else _bracketed(host)}:{directory}"


def mount_sources(definition: PoolDef) -> frozenset[str]:
    """Return every spelling of the definition's source in mountinfo, in the form of :func:`plain_source`."""
    kind = source_format(definition)
    directory = definition.source.directory or ""
    spelled = set()
    for host in definition.source.hosts:
        bare = check_host(host.name)
        for name in (bare, _bracketed(bare)):
            if kind == "cifs":
                spelled.add(plain_source(f"//{name}/{directory.lstrip('/')}"))
            else:  # Gluster accepts a volume with and without the slash; NFS adds it
                spelled.add(plain_source(f"{name}:{directory}"))
                spelled.add(plain_source(f"{name}:/{directory.lstrip('/')}"))
                spelled.add(plain_source(f"{name}:{directory.lstrip('/')}"))
    return frozenset(spelled)


def plain_source(source: str) -> str:
    """Return a mount's source without slashes at its end, except the one of ``HOST:/``."""
    bare = source.rstrip("/")
    return bare + "/" if bare.endswith(":") else bare


def source_format(definition: PoolDef) -> str:
    """Return the source's format, by default ``auto``."""
    return definition.source.format or FORMATS[0]


def target_path(definition: PoolDef) -> str:
    """Return where the pool is mounted. :raises DefinitionError: the definition has no target."""
    if not definition.target.path:
        raise DefinitionError("a netfs pool needs a target path", element="target")
    return definition.target.path


def _bracketed(host: str) -> str:
    bare = check_host(host)
    return f"[{bare}]" if ":" in bare else bare


# --------------------------------------------------------------------------------------------------------- checking


def check_source(definition: PoolDef) -> None:
    """Check every part that :func:`mount_argv` makes arguments of.

    :raises DefinitionError: naming the invalid element.
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
    if kind not in ("auto", "nfs"):
        raise DefinitionError(f"a netfs source of format {kind!r} has no protocol version", element="protocol")
    if not _VERSION.fullmatch(version):
        raise DefinitionError(f"{printable(version)!r} is not a protocol version", element="protocol")


def _check_for_shell(definition: PoolDef) -> None:
    # mount.glusterfs is a shell script that splits its arguments at blanks and expands patterns: a target
    # "/mnt/x --log-file=/etc/passwd" would be two arguments of the client.
    if ":" in (definition.source.directory or ""):  # it also takes the text after the last colon for the volume
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
