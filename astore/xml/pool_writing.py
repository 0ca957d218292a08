"""Write ``<pool>`` documents."""

from __future__ import annotations

from lxml import etree

from astore.errors import DefinitionError
from astore.model import Adapter, PoolDef, PoolInfo, Source
from astore.xml.pool_source import NO_TARGET
from astore.xml.reading import ASTORE_NAMESPACE, FS_NAMESPACE, RBD_NAMESPACE, Element, safe
from astore.xml.writing import add, add_permissions, render


def pool_to_xml(definition: PoolDef, info: PoolInfo | None = None) -> str:
    """Write a ``<pool>`` document; see :meth:`astore.PoolDef.to_xml`."""
    spaces: dict[str, str] = {}
    if definition.mount_options:
        spaces["fs"] = FS_NAMESPACE
    if definition.config_options:
        spaces["rbd"] = RBD_NAMESPACE
    if definition.allowed_options:
        spaces["astore"] = ASTORE_NAMESPACE
    root = etree.Element("pool", nsmap=spaces)
    root.set("type", safe(definition.type))
    add(root, "name", definition.name)
    if definition.uuid is not None:
        add(root, "uuid", definition.uuid)
    add(root, "capacity", info.capacity if info else 0, unit="bytes")
    add(root, "allocation", info.allocation if info else 0, unit="bytes")
    add(root, "available", info.available if info else 0, unit="bytes")
    if definition.features_cow is not None:
        add(add(root, "features"), "cow", state="yes" if definition.features_cow else "no")
    add_source(root, definition.source)
    target = definition.target
    if definition.type not in NO_TARGET and (target.path is not None or target.permissions is not None):
        element = add(root, "target")
        if target.path is not None:
            add(element, "path", target.path)
        add_permissions(element, target.permissions)
    if definition.refresh_allocation is not None:
        add(add(root, "refresh"), "volume", allocation=definition.refresh_allocation)
    if definition.mount_options:
        options = add(root, f"{{{FS_NAMESPACE}}}mount_opts")
        for name in definition.mount_options:
            add(options, f"{{{FS_NAMESPACE}}}option", name=name)
    if definition.allowed_options:
        options = add(root, f"{{{ASTORE_NAMESPACE}}}mount_opts")
        for name in definition.allowed_options:
            add(options, f"{{{ASTORE_NAMESPACE}}}allow", name=name)
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
        separator = None if device.part_separator is None else "yes" if device.part_separator else "no"
        inner = add(element, "device", path=device.path, part_separator=separator)
        for extent in device.free_extents:
            add(inner, "freeExtent", start=extent.start, end=extent.end)
    if source.directory is not None:
        add(element, "dir", path=source.directory)
    if source.adapter is not None:
        _add_adapter(element, source.adapter)
    if source.name is not None:
        add(element, "name", source.name)
    if source.initiator is not None:
        add(add(element, "initiator"), "iqn", name=source.initiator)
    if source.format is not None:
        add(element, "format", type=source.format)
    if source.auth is not None:
        auth = add(element, "auth", type=source.auth.type, username=source.auth.username)
        add(
            auth,
            "secret",
            type=source.auth.secret_type,
            uuid=source.auth.secret_uuid,
            usage=source.auth.secret_usage,
        )
    if source.protocol_version is not None:
        add(element, "protocol", ver=source.protocol_version)
    if source.vendor is not None:
        add(element, "vendor", name=source.vendor)
    if source.product is not None:
        add(element, "product", name=source.product)


def _add_adapter(parent: Element, adapter: Adapter) -> None:
    element = add(
        parent,
        "adapter",
        type=adapter.type,
        name=adapter.name,
        parent=adapter.parent,
        parent_wwnn=adapter.parent_wwnn,
        parent_wwpn=adapter.parent_wwpn,
        parent_fabric_wwn=adapter.parent_fabric_wwn,
        managed=None if adapter.managed is None else "yes" if adapter.managed else "no",
        wwnn=adapter.wwnn,
        wwpn=adapter.wwpn,
    )
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
