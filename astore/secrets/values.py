"""Values as people and programs write them, and as files have them."""

from __future__ import annotations

import base64
import binascii

from astore.errors import DefinitionError
from astore.model import SecretValue
from astore.xml.known_types import BASE64_USAGES

LARGEST_VALUE = 65_536
"""The longest value, in bytes: REMOTE_SECRET_VALUE_MAX of libvirt's protocol."""


def value_from_text(text: bytes, usage_type: str) -> SecretValue:
    """Return the value that a text means: of some usages the key that it is the base64 of, else the text.

    :param text: a newline at its end is not part of it.
    :raises DefinitionError: it is empty, too long, or no base64; the error does not show it.
    """
    text = text.removesuffix(b"\n").removesuffix(b"\r")
    return value_from_base64(text) if usage_type in BASE64_USAGES else checked(text)


def value_from_base64(text: bytes) -> SecretValue:
    """Return the value that a text is the base64 of; blanks and newlines in it do not count.

    :raises DefinitionError: it is no base64, empty, or too long; the error does not show it.
    """
    try:
        return checked(base64.b64decode(b"".join(text.split()), validate=True))
    except binascii.Error:
        raise DefinitionError("the value is no base64") from None


def checked(value: bytes) -> SecretValue:
    """Return a value. :raises DefinitionError: it is empty or too long."""
    if not value:
        raise DefinitionError("the value is empty")
    if len(value) > LARGEST_VALUE:
        raise DefinitionError(f"the value is longer than {LARGEST_VALUE} bytes")
    return SecretValue(value)
