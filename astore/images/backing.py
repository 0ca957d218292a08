"""Where one backing file is, by its name alone; see :mod:`astore.images.references` for all that a header says."""

from __future__ import annotations

from astore.images.errors import ImageError
from astore.images.fields import speakable
from astore.images.gluster import GlusterLocation, parse_gluster_uri
from astore.images.paths import has_protocol
from astore.images.references import LONGEST_NAME, located
from astore.model import Reference, ReferenceKind

__all__ = ["GlusterLocation", "has_protocol", "parse_gluster_uri", "resolve_backing"]


def resolve_backing(name: str, volume_path: str) -> str | None:
    """Say where a backing file is: an absolute path, or a URL; None if that cannot be told.

    :param name: as the image's header has it.
    :param volume_path: the image's own absolute path, or its ``gluster://host/volume/…`` URL.
    :raises ImageError: the name is too long, or has control characters.
    """
    if len(name) > LONGEST_NAME:
        raise ImageError(f"a backing name of {len(name)} characters is too long")
    speakable(name, "backing name")
    return located((Reference(ReferenceKind.BACKING, name),), volume_path)[0].location
