"""Definitions of pools and volumes: the records of libvirt's ``<pool>`` and ``<volume>`` documents.

Import them from :mod:`astore.model`. Only ``from_xml`` and ``to_xml`` import another part of astore: its reader and writer.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Any

import msgspec

from astore.model.secrets import SecretName

if TYPE_CHECKING:
    from astore.model.pools import PoolInfo


class VolumeType(enum.StrEnum):
    """The type of a volume, in libvirt's words (``<volume type='…'>``)."""

    FILE = "file"
    BLOCK = "block"
    DIR = "dir"
    NETWORK = "network"
    NETDIR = "netdir"
    PLOOP = "ploop"


# --------------------------------------------------------------------------------------------- pool definitions


_HIDDEN = r"(?is)(pass(?:word|wd)?2?\s*=).*"  # compiled on first use
_HIDDEN_AFTER_USER = r"(?is)(user(?:name)?\s*=[^%]*%).*"


def shown_option(option: str) -> str:
    """Return a mount option for messages and logs: with ``***`` for a password."""
    return re.sub(_HIDDEN_AFTER_USER, r"\1***", re.sub(_HIDDEN, r"\1***", option, count=1), count=1)


class Host(msgspec.Struct, frozen=True):
    """A ``<host name= port=>`` of a source; ``port`` is None if the definition names none."""

    name: str
    port: int | None = None


class FreeExtent(msgspec.Struct, frozen=True):
    """``<freeExtent start= end=>`` of a disk pool's device, in bytes."""

    start: int
    end: int


class Device(msgspec.Struct, frozen=True):
    """``<device path=>``; ``part_separator`` belongs to multipath disks."""

    path: str
    part_separator: bool | None = None
    free_extents: tuple[FreeExtent, ...] = ()


class PciAddress(msgspec.Struct, frozen=True):
    """``<address domain= bus= slot= function=>`` below ``<parentaddr>``."""

    domain: int
    bus: int
    slot: int
    function: int


class Adapter(msgspec.Struct, frozen=True):
    """``<adapter>``: a ``scsi_host`` (by name, or by parent address and unique id) or an ``fc_host`` (by wwnn and wwpn)."""

    type: str
    name: str | None = None
    parent: str | None = None
    parent_wwnn: str | None = None
    parent_wwpn: str | None = None
    parent_fabric_wwn: str | None = None
    managed: bool | None = None
    wwnn: str | None = None
    wwpn: str | None = None
    parent_address: PciAddress | None = None
    unique_id: int | None = None


class Auth(msgspec.Struct, frozen=True):
    """``<auth type= username=>`` with its ``<secret>``, by ``uuid`` or ``usage``."""

    type: str
    username: str
    secret_uuid: str | None = None
    secret_usage: str | None = None
    secret_type: str | None = None

    def secret(self, usage_type: str) -> SecretName:
        """Return the name of the secret. :param usage_type: that the secret must have, by the type of the pool."""
        return SecretName(usage_type, self.secret_uuid, self.secret_usage)


class Source(msgspec.Struct, frozen=True):
    """``<source>``: where the pool's storage comes from."""

    hosts: tuple[Host, ...] = ()
    devices: tuple[Device, ...] = ()
    directory: str | None = None
    adapter: Adapter | None = None
    name: str | None = None
    initiator: str | None = None
    format: str | None = None
    auth: Auth | None = None
    protocol_version: str | None = None
    vendor: str | None = None
    product: str | None = None


class Permissions(msgspec.Struct, frozen=True):
    """``<permissions>``: mode (0…0o777), owner and group (None: unchanged), and a security label."""

    mode: int | None = None
    owner: int | None = None
    group: int | None = None
    label: str | None = None


class KeptPermissions(Permissions, frozen=True):
    """The permissions that a copy takes from its source. Failing to set owner or group is no error."""


class Target(msgspec.Struct, frozen=True):
    """``<target>``: the pool's path in this machine's file system."""

    path: str | None = None
    permissions: Permissions | None = None


class PoolDef(msgspec.Struct, frozen=True):
    """The definition of a pool: what libvirt's ``<pool>`` document says.

    ``uuid`` is None until the pool is defined. ``mount_options`` are the ``fs:option`` names, ``config_options``
    the pairs of a type's own options; ``foreign`` holds the top-level elements of namespaces that astore does not know, as XML
    text, so that they survive a round trip. ``allowed_options`` names the mount options that a backend refuses unless they
    are listed here, such as ``suid`` (``astore:allow`` in a document); see the backend's documentation. ``mount_secret`` names
    the secret that is the password of a mount (``astore:secret``).

    ``repr()`` does not show passwords.
    """

    type: str
    name: str
    uuid: str | None = None
    source: Source = Source()
    target: Target = Target()
    features_cow: bool | None = None
    refresh_allocation: str | None = None
    mount_options: tuple[str, ...] = ()
    config_options: tuple[tuple[str, str], ...] = ()
    foreign: tuple[str, ...] = ()
    allowed_options: tuple[str, ...] = ()
    mount_secret: SecretName | None = None

    def __repr__(self) -> str:
        return f"PoolDef({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = {
            "mount_options": tuple(shown_option(str(option)) for option in self.mount_options),
            "config_options": tuple((key, "***") for key, _ in self.config_options),
        }
        return [(name, shown.get(name, getattr(self, name))) for name in self.__struct_fields__]

    @classmethod
    def from_xml(cls, text: str | bytes) -> PoolDef:
        """Read libvirt pool XML. Elements that the pool's type does not use are validated and dropped, as libvirt does.

        :raises DefinitionError: the definition is not acceptable; the error names line and element.
        """
        from astore.xml import pool_from_xml

        return pool_from_xml(text)

    def to_xml(self, info: PoolInfo | None = None) -> str:
        """Return libvirt pool XML; ``info`` supplies capacity, allocation and available (0 without it).

        :raises DefinitionError: a field has another type than it should have, or XML cannot hold it.
        """
        from astore.model.field_types import check_fields
        from astore.xml import pool_to_xml

        check_fields(self, paths=True)
        return pool_to_xml(self, info)


# ------------------------------------------------------------------------------------------- volume definitions


class Encryption(msgspec.Struct, frozen=True):
    """``<encryption>`` of a volume: its format, its secret by ``uuid`` or ``usage``, LUKS's cipher and iv generator, and the
    ``engine`` that encrypts."""

    format: str
    secret_uuid: str | None = None
    secret_usage: str | None = None
    cipher_name: str | None = None
    cipher_size: int | None = None
    cipher_mode: str | None = None
    cipher_hash: str | None = None
    ivgen_name: str | None = None
    ivgen_hash: str | None = None
    engine: str | None = None


class Timestamps(msgspec.Struct, frozen=True):
    """``<timestamps>`` of a document, in nanoseconds since the epoch; libvirt writes them and never reads them."""

    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    btime_ns: int | None = None


class BackingStore(msgspec.Struct, frozen=True):
    """``<backingStore>``: the image that a volume is backed by. Creating a volume ignores the timestamps."""

    path: str
    format: str | None = None
    permissions: Permissions | None = None
    timestamps: Timestamps | None = None


class Extent(msgspec.Struct, frozen=True):
    """``<extent start= end=>`` of the device that a volume lies on, in bytes."""

    start: int
    end: int


class SourceDevice(msgspec.Struct, frozen=True):
    """``<device path=>`` in a volume's ``<source>``: a device that the volume lies on."""

    path: str
    extents: tuple[Extent, ...] = ()


class VolumeDef(msgspec.Struct, frozen=True):
    """The definition of a volume: libvirt's ``<volume>`` as input. Sizes in bytes; None means not given.

    ``timestamps`` and ``source`` come from documents that describe existing volumes; creating a volume ignores them.
    """

    name: str
    capacity: int | None = None
    allocation: int | None = None
    format: str | None = None
    type: VolumeType | None = None
    permissions: Permissions | None = None
    compat: str | None = None
    features: tuple[str, ...] | None = None
    cluster_size: int | None = None
    nocow: bool | None = None
    encryption: Encryption | None = None
    backing: BackingStore | None = None
    timestamps: Timestamps | None = None
    source: tuple[SourceDevice, ...] = ()

    @classmethod
    def from_xml(cls, text: str | bytes, *, copied: bool = False) -> VolumeDef:
        """Read libvirt volume XML.

        :param copied: the volume will be a copy of another, and needs no capacity.
        :raises DefinitionError: the definition is not acceptable; the error names line and element.
        """
        from astore.xml import volume_from_xml

        return volume_from_xml(text, copied=copied)

    def to_xml(self) -> str:
        """Return libvirt volume XML.

        :raises DefinitionError: a field has another type than it should have, or XML cannot hold it.
        """
        from astore.model.field_types import check_fields
        from astore.xml import volume_def_to_xml

        check_fields(self)
        return volume_def_to_xml(self)
