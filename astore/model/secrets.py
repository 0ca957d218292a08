"""Secrets, without their values: what names one, and libvirt's ``<secret>`` document as a record."""

from __future__ import annotations

import msgspec


class SecretName(msgspec.Struct, frozen=True):
    """What names a secret in a definition: its ``uuid``, or its ``usage``.

    :ivar type: the usage type that the secret must have: one of :data:`astore.xml.secret.USAGES`.
    """

    type: str
    uuid: str | None = None
    usage: str | None = None

    def __str__(self) -> str:
        return f"secret {self.uuid}" if self.uuid is not None else f"secret of usage {self.type} {self.usage!r}"

    @property
    def advice(self) -> str:
        """The next command to type if there is no such secret, or it has no value."""
        if self.uuid is not None:
            return f"`astore secret define FILE`, then `astore secret set-value {self.uuid} --file FILE`"
        import shlex

        return f"`astore secret set {self.type} {shlex.quote(self.usage or '')}`"


class SecretDef(msgspec.Struct, frozen=True):
    """The definition of a secret: libvirt's ``<secret>``. A definition has no value.

    :ivar uuid: None until the secret is defined. :ivar usage_type: one of :data:`astore.xml.secret.USAGES`.
    :ivar usage: the name of the use: a path if it is of a volume, a target's name, or any other name; None for ``none``.
    :ivar ephemeral: whether no disk may keep it. :ivar private: whether nobody is shown the value, as is true of all here.
    """

    uuid: str | None = None
    usage_type: str = "none"
    usage: str | None = None
    description: str | None = None
    ephemeral: bool = False
    private: bool = False


class SecretValue(bytes):
    """The value of a secret: bytes that neither ``repr()`` nor ``str()`` shows."""

    def __repr__(self) -> str:
        return "SecretValue(***)"

    __str__ = __repr__
