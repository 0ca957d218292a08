"""Read ``<pool>`` documents."""

from __future__ import annotations

import copy
import re
from typing import Any

import msgspec
from lxml import etree

from astore.errors import DefinitionError, LibvirtCode, printable
from astore.model import PoolDef, SecretName, Source, Target
from astore.names import check_allowed_option, check_mount_option, check_path, check_pool_name, normal_path
from astore.xml.known_types import POOL_TYPES
from astore.xml.pool_source import NAMED, NO_TARGET, source_of
from astore.xml.reading import (
    ASTORE_NAMESPACE,
    FS_NAMESPACE,
    RBD_NAMESPACE,
    Element,
    all_of,
    attribute,
    parse,
    permissions_of,
    secret_of,
    string_of,
    uuid_of,
    word_at,
    wrong,
    yes_no,
)

_MOUNT_OPTS = f"{{{ASTORE_NAMESPACE}}}mount_opts"
_WITH_COW = frozenset({"fs", "dir"})
_TYPE = re.compile(r"[a-z][a-z0-9_-]{0,31}")


def pool_from_xml(text: str | bytes) -> PoolDef:
    """Read a ``<pool>`` document; see :meth:`astore.PoolDef.from_xml`."""
    root = parse(text, "pool")
    type_ = string_of(root, "./@type")
    if type_ is None:
        raise wrong(root, "it has no attribute 'type'")
    if not _TYPE.fullmatch(type_):
        raise wrong(root, f"{printable(type_)!r} is not a pool type")
    source = source_of(root, type_)
    name = string_of(root, "./name")
    if name is None and type_ in NAMED:
        name = source.name
    if name is None:
        raise wrong(root, "the pool has no name")
    if "\n" in name:
        raise wrong(root, f"the pool's name {printable(name)!r} has control characters", LibvirtCode.XML_DETAIL)
    _at(root.find("name"), check_pool_name, name)
    if source.name is None and type_ in NAMED:
        source = msgspec.structs.replace(source, name=name)
    uuid = string_of(root, "./uuid")
    cow = _cow(root, type_)
    options, config, foreign = _namespaced(root, type_)
    allowed, secret = _extensions(root, type_)
    return PoolDef(
        type=type_,
        name=name,
        uuid=None if uuid is None else uuid_of(all_of(root, "./uuid")[0], uuid),
        source=source,
        target=_target(root, type_, source),
        features_cow=cow,
        refresh_allocation=word_at(root, "./refresh/volume", "allocation", "allocation", ("default", "capacity")),
        mount_options=options,
        config_options=config,
        foreign=foreign,
        allowed_options=allowed,
        mount_secret=secret,
    )


def _cow(root: Element, type_: str) -> bool | None:
    cow = next(iter(all_of(root, "./features/cow")), None)
    state = yes_no(cow, "state")
    if cow is not None and state is not None and type_ in POOL_TYPES and type_ not in _WITH_COW:
        raise wrong(cow, f"a {type_} pool does not have the feature cow", LibvirtCode.NO_SUPPORT)
    return state


def _target(root: Element, type_: str, source: Source) -> Target:
    if type_ in NO_TARGET:
        return Target()
    path = string_of(root, "./target/path")
    if type_ == "logical":
        path = normal_path(f"/dev/{source.name}")
    elif type_ == "zfs":
        path = normal_path(f"/dev/zvol/{source.name}")
    elif path is None:
        if type_ in POOL_TYPES:
            element = root.find("target")
            raise wrong(element if element is not None else root, f"a {type_} pool needs a target path")
    elif type_ in ("dir", "netfs"):
        path = _at(all_of(root, "./target/path")[0], check_path, path)
    else:
        path = normal_path(path)
    permissions = next(iter(all_of(root, "./target/permissions")), None)
    return Target(path, permissions_of(permissions))


def _mounted(type_: str) -> bool:
    return type_ in ("fs", "netfs") or type_ not in POOL_TYPES


def _extensions(root: Element, type_: str) -> tuple[tuple[str, ...], SecretName | None]:
    """Read what only astore reads: the mount options that are allowed, and the secret that is the mount's password."""
    if not _mounted(type_):
        return (), None
    allowed: dict[str, None] = {}
    secret = None
    for options in root.findall(_MOUNT_OPTS):
        for option in options.findall(f"{{{ASTORE_NAMESPACE}}}allow"):
            allowed[_at(option, check_allowed_option, attribute(option, "name"))] = None
        for element in options.findall(f"{{{ASTORE_NAMESPACE}}}secret"):
            if secret is not None:
                raise wrong(element, "a mount has one secret")
            secret = SecretName("cifs", *secret_of(element))
    return tuple(allowed), secret


def _namespaced(root: Element, type_: str) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...], tuple[str, ...]]:
    options: list[str] = []
    config: list[tuple[str, str]] = []
    foreign: list[str] = []
    for element in root:
        if not isinstance(element.tag, str) or not element.tag.startswith("{"):
            continue
        if element.tag == f"{{{FS_NAMESPACE}}}mount_opts" and _mounted(type_):
            given = element.findall(f"{{{FS_NAMESPACE}}}option")
            options.extend(_at(option, check_mount_option, attribute(option, "name")) for option in given)
        elif element.tag == f"{{{RBD_NAMESPACE}}}config_opts" and (type_ == "rbd" or type_ not in POOL_TYPES):
            given = element.findall(f"{{{RBD_NAMESPACE}}}option")
            config.extend((attribute(option, "name"), attribute(option, "value")) for option in given)
        elif element.tag != _MOUNT_OPTS or not _mounted(type_):
            foreign.append(_alone(element))
    return tuple(options), tuple(config), tuple(foreign)


def _alone(element: Element) -> str:
    """Return an element as a document of its own, with the namespaces that it uses and without indentation."""
    alone = copy.deepcopy(element)
    alone.tail = None
    for inner in alone.iter():
        if inner.text is not None and not inner.text.strip() and len(inner):
            inner.text = None
        if inner is not alone and inner.tail is not None and not inner.tail.strip():
            inner.tail = None
    return str(etree.tostring(alone, encoding="unicode"))


def _at(element: Element | None, check: Any, value: str) -> str:
    """Check a value; an error names the line."""
    try:
        return str(check(value))
    except DefinitionError as error:
        if element is None or error.line is not None:
            raise
        raise wrong(element, str(error).removeprefix(f"<{error.element}>: ")) from None
