"""Secrets as files in a state folder, which several processes may use at once. Everything here blocks.

``secrets/UUID.json`` has the definition of a secret and its value, so that no reader finds the one without the other. The
folder has mode 0700 and the files 0600; what other users could read or write is refused.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from astore.errors import AstoreError, DefinitionError, LibvirtCode, SecretNotFoundError, StoreError, reason
from astore.model import SecretDef, SecretName, SecretValue
from astore.names import check_uuid
from astore.secrets.private_files import opened_folder, read_private, write_private
from astore.secrets.values import LARGEST_VALUE, checked
from astore.store.local_files import LockedFolder, names_in, store_errors_about
from astore.xml.reading import LARGEST_DOCUMENT
from astore.xml.secret import secret_from_xml, secret_to_xml

_LARGEST = 2 * LARGEST_DOCUMENT + 2 * LARGEST_VALUE


class _Stored(msgspec.Struct, frozen=True):
    definition: SecretDef
    value: bytes | None = None

    def __repr__(self) -> str:
        return f"_Stored({self.definition!r})"


class KnownSecret(msgspec.Struct, frozen=True):
    """A secret without its value. :ivar has_value: whether it has one."""

    definition: SecretDef
    has_value: bool


class SecretFiles:
    """The secrets of a state folder. The first change creates the folder.

    Methods that take a ``uuid`` raise DefinitionError if it is none, and SecretNotFoundError if there is no such secret. All
    raise StoreError if a file cannot be read or written, or if other users can read or write it.
    """

    def __init__(self, state_dir: str | os.PathLike[str]) -> None:
        self.folder: Path = Path(state_dir) / "secrets"
        self._state = LockedFolder(state_dir)

    # --------------------------------------------------------------------------------------------------- reading

    def value(self, name: SecretName) -> SecretValue | None:
        """Return the value of a secret; None if there is no such secret, or it has no value.

        :raises SecretNotFoundError: the secret of this uuid has another usage type.
        """
        with self._reading() as folder:
            stored = None if folder is None else self._find(folder, name)
        if stored is None or stored.value is None:
            return None
        definition = stored.definition
        if definition.usage_type not in ("none", name.type):
            raise SecretNotFoundError(
                f"the secret {definition.uuid} is of usage {definition.usage_type}, not {name.type}: "
                f"`astore secret dumpxml {definition.uuid}` shows it",
                what=str(name),
                libvirt_code=LibvirtCode.INVALID_SECRET,
            )
        return SecretValue(stored.value)

    def all(self) -> tuple[tuple[KnownSecret, ...], tuple[str, ...]]:
        """Return the secrets in the order of their usage, and for each file that cannot be read, what is wrong with it."""
        with self._reading() as folder:
            found, damaged = ([], ()) if folder is None else self._all(folder)
        known = (KnownSecret(stored.definition, stored.value is not None) for stored in found)
        return tuple(sorted(known, key=_order)), damaged

    def definition(self, uuid: str) -> SecretDef:
        """Return the definition of a secret."""
        with self._reading() as folder:
            return self._get(folder, uuid).definition

    def by_usage(self, usage_type: str, usage: str) -> SecretDef:
        """Return the definition of the secret of a usage. :raises SecretNotFoundError: there is none."""
        with self._reading() as folder:
            name = SecretName(usage_type, usage=usage)
            stored = None if folder is None else self._find(folder, name)
        if stored is None:
            raise SecretNotFoundError(f"there is no {name}: `astore secret list` shows those there are", what=str(name))
        return stored.definition

    # -------------------------------------------------------------------------------------------------- changing

    def define(self, definition: str | bytes | SecretDef) -> SecretDef:
        """Define a secret, or define it anew: its value stays. Return the definition, with its uuid.

        :param definition: libvirt secret XML or a record.
        :raises DefinitionError: it is not acceptable; there is a secret of this usage; or the uuid's has another usage.
        """
        text = secret_to_xml(definition) if isinstance(definition, SecretDef) else definition
        wanted = secret_from_xml(text)
        if wanted.ephemeral:
            raise DefinitionError(
                "an ephemeral secret is in no file: leave ephemeral out, or give its value as a systemd credential",
                element="secret",
                libvirt_code=LibvirtCode.CONFIG_UNSUPPORTED,
            )
        with self._changing() as folder:
            return self._define(folder, wanted).definition

    def set_value(self, uuid: str, value: bytes) -> None:
        """Set the value of a secret. :raises DefinitionError: it is empty, or longer than LARGEST_VALUE bytes."""
        with self._changing() as folder:
            self._write(folder, _Stored(self._get(folder, uuid).definition, bytes(checked(value))))

    def set(self, usage_type: str, usage: str, value: bytes) -> SecretDef:
        """Set the value of the secret of a usage, which is defined if it is not; return its definition.

        :raises DefinitionError: there is no such usage type, or the value is empty or longer than LARGEST_VALUE bytes.
        """
        value = bytes(checked(value))
        wanted = secret_from_xml(secret_to_xml(SecretDef(usage_type=usage_type, usage=usage, private=True)))
        if wanted.usage is None:
            raise DefinitionError("a secret without a usage is set by its uuid", element="usage")
        with self._changing() as folder:
            stored = self._find(folder, SecretName(usage_type, usage=wanted.usage)) or self._define(folder, wanted)
            self._write(folder, _Stored(stored.definition, value))
            return stored.definition

    def undefine(self, uuid: str) -> None:
        """Remove a secret, with its value."""
        with self._changing() as folder:
            file = self._get(folder, uuid).definition.uuid
            with store_errors_about(self._path(f"{file}.json")):
                os.unlink(f"{file}.json", dir_fd=folder)
                os.fsync(folder)

    def _define(self, folder: int, wanted: SecretDef) -> _Stored:
        wanted = msgspec.structs.replace(wanted, uuid=wanted.uuid or str(uuid.uuid4()))
        old = self._find(folder, SecretName("", wanted.uuid))
        same = None
        if wanted.usage is not None:
            same = self._find(folder, SecretName(wanted.usage_type, usage=wanted.usage))
        for other in (old, same):
            one = wanted if other is None else other.definition
            if (one.uuid, one.usage_type, one.usage) != (wanted.uuid, wanted.usage_type, wanted.usage):
                raise DefinitionError(
                    f"the secret {one.uuid} is defined already for usage {one.usage_type} {one.usage or ''!r}: "
                    f"undefine it first with `astore secret undefine {one.uuid}`",
                    element="usage",
                    libvirt_code=LibvirtCode.INTERNAL_ERROR,
                )
        stored = _Stored(wanted, None if old is None else old.value)
        self._write(folder, stored)
        return stored

    # ---------------------------------------------------------------------------------------------------- files

    @contextlib.contextmanager
    def _reading(self) -> Iterator[int | None]:
        """Yield the folder's descriptor; None if there is no folder."""
        self._state.check()
        with opened_folder(self.folder) as folder:
            yield folder

    @contextlib.contextmanager
    def _changing(self) -> Iterator[int]:
        """Yield the folder's descriptor, and keep other processes and threads from changes meanwhile."""
        with self._state.locked():
            with store_errors_about(self.folder), contextlib.suppress(FileExistsError):
                os.mkdir(self.folder, 0o700)
            with opened_folder(self.folder) as folder:
                if folder is None:
                    raise StoreError(f"{self.folder} was removed meanwhile")
                yield folder

    def _get(self, folder: int | None, uuid: str) -> _Stored:
        name = SecretName("", check_uuid(uuid))
        stored = None if folder is None else self._find(folder, name)
        if stored is None:
            raise SecretNotFoundError(f"there is no {name}: `astore secret list` shows those there are", what=uuid)
        return stored

    def _find(self, folder: int, name: SecretName) -> _Stored | None:
        if name.uuid is not None:
            return self._read(folder, check_uuid(name.uuid))
        found, damaged = self._all(folder)
        for stored in found:
            if (stored.definition.usage_type, stored.definition.usage) == (name.type, name.usage):
                return stored
        if damaged:  # this may be the one
            raise StoreError(damaged[0])
        return None

    def _all(self, folder: int) -> tuple[list[_Stored], tuple[str, ...]]:
        found, damaged = [], []
        for name in names_in(self.folder, ".json"):
            try:
                stored = self._read(folder, name)
            except AstoreError as error:
                damaged.append(reason(error))
            else:
                if stored is not None:  # another process has not removed it meanwhile
                    found.append(stored)
        return found, tuple(damaged)

    def _read(self, folder: int, uuid: str) -> _Stored | None:
        path = self._path(f"{uuid}.json")
        text = read_private(folder, path.name, path, _LARGEST)
        if text is None:
            return None
        try:
            stored = msgspec.json.decode(text, type=_Stored)
        except (msgspec.MsgspecError, UnicodeError):  # the error, or its context, may show a part of the text
            stored = None
        if stored is None or stored.definition.uuid != uuid:
            raise StoreError(f"{path} is damaged: remove it, and set the secret again")
        return stored

    def _write(self, folder: int, stored: _Stored) -> None:
        path = self._path(f"{stored.definition.uuid}.json")
        write_private(folder, path.name, path, msgspec.json.encode(stored))

    def _path(self, file: str) -> Path:
        return self.folder / file


def _order(known: KnownSecret) -> tuple[str, str, str]:
    one = known.definition
    return one.usage_type, one.usage or "", one.uuid or ""
