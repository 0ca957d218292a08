"""Discovery: asks the backends what they can do, and hosts for the sources that they offer to pools of a type."""

from __future__ import annotations

from astore.backend import Context, DiscoversSources
from astore.commands import LaneCommandRunner
from astore.errors import DefinitionError, UnsupportedOperationError
from astore.names import check_host
from astore.plugin_calls import answer
from astore.pools.services import Services
from astore.xml.documents import DiscoveredSources, asked_in_xml, capabilities_to_xml
from astore.xml.known_types import POOL_TYPES


async def discover_sources(
    services: Services,
    type: str,
    host: str | None,
    port: int | None,
    spec: str | bytes | None,
    initiator: str | None,
) -> DiscoveredSources:
    """Ask a host; see :meth:`astore.Manager.discover`."""
    lanes = services.check_open()
    if spec is not None:
        if host is not None or port is not None or initiator is not None:
            raise DefinitionError("a source specification names the host and initiator: give no others", element="host")
        named, initiator = asked_in_xml(spec, type)
        host, port = named.name, named.port
    if host is not None:
        host = check_host(host)
    backend = await services.registry.get(type)
    if not isinstance(backend, DiscoversSources):
        raise UnsupportedOperationError(pool=None, type=type, operation="discover")
    more: dict[str, str] = {}
    if initiator is not None and backend.asks_as_initiator:
        more["initiator"] = initiator
    elif initiator is not None and spec is None:
        raise DefinitionError(f"servers of {type} know no initiators", element="initiator")
    lane = lanes.lane(f"discovery of {type} on {host}", limit=4, timeout=services.call_timeout)
    try:
        log = services.log.bind(discover=type)
        context = Context("", "", lane, LaneCommandRunner(lane), log, services.call_timeout, services.secrets)
        return DiscoveredSources(await answer(backend.discover(host, context, port=port, **more)))
    finally:
        lane.close()


async def capabilities_of(services: Services) -> str:
    """Load all backends, and write what they can do; see :meth:`astore.Manager.capabilities`."""
    services.check_open()
    registry = services.registry
    await registry.load_all()
    types = dict.fromkeys((*POOL_TYPES, *registry.types()))
    backends = {type_: registry.loaded(type_) for type_ in types}
    return capabilities_to_xml(
        (type_, True, one.source_formats, one.volume_formats) if one is not None else (type_, False, (), ())
        for type_, one in backends.items()
    )
