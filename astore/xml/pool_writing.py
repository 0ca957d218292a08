"""Write ``<pool>`` documents."""

from __future__ import annotations

from lxml import etree

from astore.errors import DefinitionError
from astore.model import Adapter, PoolDef, PoolInfo, Source
from astore.xml.pool_source import NO_TARGET
from astore.xml.reading import ASTORE_NAMESPACE, FS_NAMESPACE, RBD_NAMESPACE, Element, safe
from astore.xml.writing import add, add_given, add_permissions, render


def pool_to_xml(definition: PoolDef, info: PoolInfo | None = None) -> str:
    """Write a ``<pool>`` document; see :meth:`astore.PoolDef.to_xml`."""
    spaces: dict[str, str] = {}
    if definition.mount_options:
        spaces["fs"] = FS_NAMESPACE
    if definition.config_options:
        spaces["rbd"] = RBD_NAMESPACE
    if definition.allowed_options or definition.mount_secret is not None:
        spaces["astore"] = ASTORE_NAMESPACE
    root = etree.Element("pool", nsmap=spaces)
    root.set("type", safe(definition.type))
    add(root, "name", definition.name)
    add_given(root, "uuid", definition.uuid)
    for name in ("capacity", "allocation", "available"):
        add(root, name, getattr(info, name) if info else 0, unit="bytes")
    if definition.features_cow is not None:
        add(add(root, "features"), "cow", state=definition.features_cow)
    add_source(root, definition.source)
    target = definition.target
    if definition.type not in NO_TARGET and (target.path is not None or target.permissions is not None):
        element = add(root, "target")
        add_given(element, "path", target.path)
        add_permissions(element, target.permissions)
    if definition.refresh_allocation is not None:
        add(add(root, "refresh"), "volume", allocation=definition.refresh_allocation)
    if definition.mount_options:
        options = add(root, f"{{{FS_NAMESPACE}}}mount_opts")
        for name in definition.mount_options:
            add(options, f"{{{FS_NAMESPACE}}}option", name=name)
    if definition.allowed_options or definition.mount_secret is not None:
        options = add(root, f"{{{ASTORE_NAMESPACE}}}mount_opts")
        for name in definition.allowed_options:
            add(options, f"{{{ASTORE_NAMESPACE}}}allow", name=name)
        if (secret := definition.mount_secret) is not None:
            add(options, f"{{{ASTORE_NAMESPACE}}}secret", uuid=secret.uuid, usage=secret.usage)
    if definition.config_options:
        options = add(root, f"{{{RBD_NAMESPACE}}}config_opts")
        for name, value in definition.config_options:
            add(options, f"{{{RBD_NAMESPACE}}}option", name=name, value=value)
    for text in definition.foreign:
        try:
            root.append(etree.fromstring(text, etree.XMLParser(resolve_entities=False, no_network=True)))
        except etree.XMLSyntaxError as error:
            raise DefinitionError(f"a foreign element is not XML: {error.msg}") from None
    return render(root)


def add_source(root: Element, source: Source) -> None:
    """Append ``<source>``, even if it is empty."""
    element = add(root, "source")
    for host in source.hosts:
        add(element, "host", name=host.name, port=host.port)
    for device in source.devices:
        inner = add(element, "device", path=device.path, part_separator=device.part_separator)
        for extent in device.free_extents:
            add(inner, "freeExtent", start=extent.start, end=extent.end)
    add_given(element, "dir", path=source.directory)
    if source.adapter is not None:
        _add_adapter(element, source.adapter)
    add_given(element, "name", source.name)
    if source.initiator is not None:
        add(add(element, "initiator"), "iqn", name=source.initiator)
    add_given(element, "format", type=source.format)
    if source.auth is not None:
        auth = source.auth
        inner = add(element, "auth", type=auth.type, username=auth.username)
        add(inner, "secret", type=auth.secret_type, uuid=auth.secret_uuid, usage=auth.secret_usage)
    add_given(element, "protocol", ver=source.protocol_version)
    add_given(element, "vendor", name=source.vendor)
    add_given(element, "product", name=source.product)


def _add_adapter(parent: Element, adapter: Adapter) -> None:
    names = ("type", "name", "parent", "parent_wwnn", "parent_wwpn", "parent_fabric_wwn", "managed", "wwnn", "wwpn")
    element = add(parent, "adapter", **{name: getattr(adapter, name) for name in names})
    if adapter.parent_address is not None:
        inner = add(element, "parentaddr", unique_id=adapter.unique_id)
        address = adapter.parent_address
        add(
            inner,
            "address",
            domain=f"0x{address.domain:04x}",
            bus=f"0x{address.bus:02x}",
            slot=f"0x{address.slot:02x}",
            function=f"0x{address.function:x}",
        )
