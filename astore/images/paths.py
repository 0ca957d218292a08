"""Turn plain file names into paths and URLs.

``..`` stays as it is: ``a/../b`` is not ``b`` if ``a`` is a symbolic link. ``.`` and empty parts mean nothing anywhere
and are removed.
"""

from __future__ import annotations

import re
from urllib.parse import quote

URL_SAFE = "/;@&=+$,-_.!~*'()"
"""Characters that stay unescaped in a volume's URL, besides letters and digits (libxml2's xmlSaveUri, and so libvirt).
"""

URL_PARTS = frozenset("%?#")
"""Characters that QEMU takes for parts of a URL in a name that it appends to one."""

_PROTOCOL = re.compile(r"[^/:]*+:")


def has_protocol(name: str) -> bool:
    """Return whether a name has a ``:`` before its first ``/`` (QEMU's path_has_protocol)."""
    return _PROTOCOL.match(name) is not None


def without_protocol(name: str) -> str:
    """Spell a volume's plain name so that QEMU takes no part of it for a protocol."""
    return f"./{name}" if has_protocol(name) else name


def named_beside(name: str, path: str) -> str:
    """Spell a volume's name for the header of an image in the same pool.

    :param path: the volume's path or URL. It is returned whole if the name has ``%``, ``?`` or ``#``, which QEMU would
        take for parts of a URL.
    """
    return path if is_url(path) and not URL_PARTS.isdisjoint(name) else without_protocol(name)


def is_folders(name: str) -> bool:
    """Return whether a name ends like a folder's (``a/``, ``a/.``), so that the kernel opens no file by it."""
    return name.endswith(("/", "/."))


def on_record(location: str) -> str:
    """Return an absolute path as text: with bytes that are not text (lone surrogates), as a percent-encoded URL."""
    return "file://" + quote(location, safe=URL_SAFE, errors="surrogateescape")


def absolute(name: str) -> str | None:
    """Return an absolute file name without empty parts and ``.``; None for a relative one."""
    return beside(name, "/") if name.startswith("/") else None


def beside(name: str, volume_path: str) -> str | None:
    """Return the path of a plain file name, absolute or relative to an image's folder; None if it is empty.

    Next to a URL, a relative name becomes a URL in the same folder, escaped like a volume's key.

    :param volume_path: the image's absolute path, or its URL.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts:
        return None
    tidy = "/".join(parts)
    if name.startswith("/"):
        return "/" + tidy
    query = ""
    if is_url(volume_path):
        volume_path, mark, query = volume_path.partition("?")
        tidy, query = quote(tidy, safe=URL_SAFE, errors="surrogateescape"), mark + query
    return f"{volume_path.rpartition('/')[0]}/{tidy}{query}"


def is_url(volume_path: str) -> bool:
    """Return whether a volume's path is a URL, not a path of this machine."""
    return "://" in volume_path and not volume_path.startswith("/")
