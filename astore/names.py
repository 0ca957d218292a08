"""Checks of untrusted names.

Pool and volume names become file names, hosts and mount options become arguments of programs, paths are opened. A value that
could mean something else there is refused with a :class:`~astore.errors.DefinitionError` before it is stored.
"""

from __future__ import annotations

import ipaddress
import re
import uuid

from astore.errors import DefinitionError, LibvirtCode, printable
from astore.model.definitions import shown_option

NAME_BYTES = 250
"""The longest name of a pool: it is part of a file name, and NAME_MAX (limits.h) is 255."""

# patterns that are plain strings are compiled on first use: that takes as long as importing a module
_HOST = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?"
_URI = r"[A-Za-z][A-Za-z0-9+.-]*://"
_UUID = re.compile(r"[ \t\n\v\f\r]*(?:[- ]*[0-9a-fA-F]{2}){16}[ \t\n\v\f\r]*")


def _no_control(value: str, what: str, element: str | None, shown: str | None = None) -> None:
    if value.isascii() and value.isprintable():
        return
    named = f"the {what} {printable(value if shown is None else shown)!r}"
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise DefinitionError(f"{named} has control characters", element=element)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DefinitionError(f"{named} is not valid Unicode", element=element) from None


def _check_name(name: str, what: str, longest: int, slash: LibvirtCode | None = None) -> str:
    if not name:
        raise DefinitionError(f"the {what} is empty", element="name")
    _no_control(name, what, "name")
    if "/" in name:
        raise DefinitionError(f"the {what} {name!r} has a '/'", element="name", libvirt_code=slash)
    if name in (".", ".."):
        raise DefinitionError(f"{name!r} cannot be a {what}", element="name")
    if name.startswith("-"):
        raise DefinitionError(f"the {what} {name!r} begins with '-', as options of programs do", element="name")
    if len(name.encode()) > longest:
        raise DefinitionError(f"the {what} is longer than {longest} bytes", element="name")
    return name


def check_pool_name(name: str) -> str:
    """Return a pool's name unchanged. :raises DefinitionError: it is not acceptable."""
    return _check_name(name, "pool name", NAME_BYTES)


def check_volume_name(name: str) -> str:
    """Return a volume's name unchanged. :raises DefinitionError: it is not acceptable, or longer than 255 bytes."""
    return _check_name(name, "volume name", 255, LibvirtCode.OPERATION_INVALID)


def check_host(host: str) -> str:
    """Return a host name or an address, without brackets around an IPv6 address.

    :raises DefinitionError: it is neither.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare:
        address, _, zone = bare.partition("%")
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            raise DefinitionError(f"{printable(host)!r} is no host name or address", element="host") from None
        if "%" in bare and not re.fullmatch(r"[A-Za-z0-9_.-]+", zone):
            raise DefinitionError(f"{printable(host)!r} has no valid zone after '%'", element="host")
        return bare
    if not re.fullmatch(_HOST, host):
        raise DefinitionError(f"{printable(host)!r} is no host name or address", element="host")
    return host


def check_mount_option(option: str) -> str:
    """Return one mount option, ``name`` or ``name=value``, unchanged.

    :raises DefinitionError: it is empty, several options, or begins with ``-``.
    """
    if not option:
        raise DefinitionError("a mount option is empty", element="option")
    shown = shown_option(option)  # a password must not get into a message
    _no_control(option, "mount option", "option", shown)
    if "," in option:
        advice = "give each option its own element"
        if shown != option:
            advice = "a password with one has to be in a file of yours, which the option credentials= names"
        raise DefinitionError(f"the mount option {shown!r} has a comma: {advice}", element="option")
    if option.startswith("-"):
        raise DefinitionError(f"the mount option {shown!r} begins with '-'", element="option")
    return option


def check_allowed_option(name: str) -> str:
    """Return the name of an allowed mount option unchanged. :raises DefinitionError: it is no option, or has a value."""
    if "=" in check_mount_option(name):
        raise DefinitionError(
            f"an option is allowed by its name alone: {shown_option(name)!r} has a value", element="allow"
        )
    return name


def normal_path(path: str) -> str:
    """Return a path as libvirt writes it (virFileSanitizePath).

    Runs of ``/`` become one and a trailing one goes; exactly two at the beginning stay. A URL (``scheme://``) is unchanged.
    """
    if re.match(_URI, path):
        return path
    lead = ""
    if path.startswith("//") and not path.startswith("///"):
        lead, path = "/", path[1:]
    path = re.sub("/+", "/", path)
    if len(path) > 1 and path.endswith("/"):
        path = path[:-1]
    return lead + path


def check_path(path: str, *, what: str = "path", element: str | None = "path", absolute: bool = True) -> str:
    """Return a path in the form of :func:`normal_path`.

    :param absolute: the path must begin with ``/``.
    :raises DefinitionError: it does not, it has control characters or a ``..``, or it is longer than 4,095 bytes.
    """
    _no_control(path, what, element)
    path = normal_path(path)
    if absolute and not path.startswith("/"):
        raise DefinitionError(f"the {what} {path!r} is not absolute", element=element)
    if ".." in path.split("/"):
        raise DefinitionError(f"the {what} {path!r} has a '..'", element=element)
    if len(path.encode()) > 4095:  # PATH_MAX (limits.h), less its NUL
        raise DefinitionError(f"the {what} is longer than 4,095 bytes", element=element)
    return path


def check_uuid(text: str) -> str:
    """Return a UUID in lower case with hyphens.

    Like virUUIDParse, accepts hyphens and blanks anywhere between the bytes, and blanks around them.

    :raises DefinitionError: the text is no UUID.
    """
    if not _UUID.fullmatch(text):
        raise DefinitionError(f"{printable(text[:64])!r} is no UUID", element="uuid")
    return str(uuid.UUID(re.sub(r"[^0-9a-fA-F]", "", text)))
