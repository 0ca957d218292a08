"""Plain file names, and how they become paths and URLs.

Names are never resolved by the letter where the file system might resolve them otherwise: ``a/../b`` is not ``b`` if ``a`` is a
symbolic link, so ``..`` stays as it is. ``.`` and empty parts mean nothing anywhere, and are taken out.
"""

from __future__ import annotations

import re
from urllib.parse import quote

URL_SAFE = "/;@&=+$,-_.!~*'()"
"""What stays as it is in the path of a volume's URL, beside letters and digits (libxml2's xmlSaveUri, and so libvirt)."""

URL_PARTS = frozenset("%?#")
"""What QEMU takes for parts of a URL in a name that it puts behind one."""

_PROTOCOL = re.compile(r"[^/:]*+:")


def has_protocol(name: str) -> bool:
    """Whether a name has a ``:`` before its first ``/`` (QEMU's path_has_protocol)."""
    return _PROTOCOL.match(name) is not None


def without_protocol(name: str) -> str:
    """Spell a volume's plain name so that QEMU takes no part of it for a protocol."""
    return f"./{name}" if has_protocol(name) else name


def named_beside(name: str, path: str) -> str:
    """Spell the name of a volume, as an image in the same pool is to have it in its header.

    :param path: the volume's path or URL. QEMU would take ``%``, ``?`` and ``#`` for parts of a URL: then it is the whole URL.
    """
    return path if is_url(path) and not URL_PARTS.isdisjoint(name) else without_protocol(name)


def absolute(name: str) -> str | None:
    """An absolute file name, tidied up; None for a relative one."""
    return beside(name, "/") if name.startswith("/") else None


def beside(name: str, volume_path: str) -> str | None:
    """A plain file name, absolute or seen from an image's folder; None if it names nothing.

    Beside a URL a relative name becomes a URL in the same folder, escaped like a volume's key.

    :param volume_path: the image's own absolute path, or its URL.
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
        tidy, query = quote(tidy, safe=URL_SAFE), mark + query
    return f"{volume_path.rpartition('/')[0]}/{tidy}{query}"


def is_url(volume_path: str) -> bool:
    """Whether a volume's path is a URL, and no path of this machine."""
    return "://" in volume_path and not volume_path.startswith("/")
