"""The table of virsh's names: for each, the command that does the work, virsh's options with a value, and what virsh prints.

``astore.cli.virsh_command`` makes commands of it, and ``astore.cli.virsh_text`` prints. Every start reads this module, so it
imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Verb:
    """A command under its virsh name.

    :ivar place: the ``module:object`` of the command.
    :ivar slots: virsh's options that take a value, in virsh's order, which words without an option fill. ``vol=volume`` is
        virsh's ``--vol`` for our parameter ``volume``.
    :ivar says: virsh's sentence, with fields of the arguments and of the JSON document; the name of a function of
        ``astore.cli.virsh_text`` after ``@``; or "" for a text that is ours as well, such as XML.
    """

    __slots__ = ("place", "says", "slots")

    def __init__(self, place: str, slots: str = "", says: str = "") -> None:
        self.place: str = place
        self.slots: tuple[tuple[str, str], ...] = tuple(
            (name, ours or name.replace("-", "_")) for name, _, ours in map(_parted, slots.split())
        )
        self.says: str = says


def _parted(text: str) -> tuple[str, str, str]:
    return text.partition("=")


_POOL = "pool=names"
_AS = (
    "name type source-host source-path source-dev source-name target source-format auth-type auth-username secret-usage "
    "secret-uuid adapter-name adapter-wwnn adapter-wwpn adapter-parent adapter-parent-wwnn adapter-parent-wwpn "
    "adapter-parent-fabric-wwn source-protocol-ver source-initiator"
)

VERBS: Mapping[str, Verb] = {
    "find-storage-pool-sources-as": Verb("pool_sources:find_sources", "type host port initiator", "@xml"),
    "find-storage-pool-sources": Verb("pool_sources:find_sources_by_file", "type srcSpec=spec", "@xml"),
    "pool-autostart": Verb("pools:autostart", _POOL, "@autostart"),
    "pool-build": Verb("pools:build", _POOL, "Pool {asked} built"),
    "pool-capabilities": Verb("pool_sources:capabilities_xml", "", "@xml"),
    "pool-create": Verb("pools:create", "file=files", "Pool {pool} created from {file}"),
    "pool-create-as": Verb("pool_as:create_as", _AS, "Pool {pool} created"),
    "pool-define": Verb("pools:define", "file=files", "Pool {pool} defined from {file}"),
    "pool-define-as": Verb("pool_as:define_as", _AS, "Pool {pool} defined"),
    "pool-delete": Verb("pools:delete", _POOL, "Pool {asked} deleted"),
    "pool-destroy": Verb("pools:stop", _POOL, "Pool {asked} destroyed"),
    "pool-dumpxml": Verb("pool_views:dumpxml", "pool=name", "@xml"),
    "pool-edit": Verb("pool_edit:edit", "pool=name", "@edited"),
    "pool-event": Verb("pool_event:pool_event", "pool event"),
    "pool-info": Verb("pool_views:show_info", "pool=name", "@pool_info"),
    "pool-list": Verb("pool_list:list_pools", "type=types", "@pool_list"),
    "pool-name": Verb("pool_views:pool_name", "pool=uuid"),
    "pool-refresh": Verb("pool_refresh:refresh", _POOL, "Pool {asked} refreshed"),
    "pool-start": Verb("pools:start", _POOL, "Pool {asked} started"),
    "pool-undefine": Verb("pools:undefine", _POOL, "Pool {asked} has been undefined"),
    "pool-uuid": Verb("pool_views:pool_uuid", "pool=name"),
    "secret-define": Verb("secrets:define", "file", "Secret {uuid} created"),
    "secret-dumpxml": Verb("secrets:dumpxml", "secret=uuid", "@xml"),
    "secret-list": Verb("secrets:list_secrets", "", "@secret_list"),
    "secret-set-value": Verb("secrets:set_value", "secret=uuid", "Secret value set"),
    "secret-undefine": Verb("secrets:undefine", "secret=uuid", "Secret {uuid} deleted"),
    "vol-clone": Verb("volume_copies:clone", "vol=volume newname=name pool", "Vol {name} cloned from {source}"),
    "vol-create": Verb("volume_changes:create_xml", "pool file", "Vol {name} created from {file}"),
    "vol-create-as": Verb(
        "volume_changes:create",
        "pool name capacity allocation format backing-vol=backing backing-vol-format=backing_format",
        "Vol {name} created",
    ),
    "vol-create-from": Verb(
        "volume_copies:create_from",
        "pool=to file vol=volume inputpool=pool",
        "Vol {name} created from input vol {source}",
    ),
    "vol-delete": Verb("volume_changes:delete", "vol=volumes pool", "Vol {asked} deleted"),
    "vol-download": Verb("volume_streams:download", "vol=volume file pool offset length", "@nothing"),
    "vol-dumpxml": Verb("volumes:dumpxml", "vol=volume pool", "@xml"),
    "vol-info": Verb("volumes:show_info", "vol=volume pool", "@volume_info"),
    "vol-key": Verb("volumes:vol_key", "vol=volume pool"),
    "vol-list": Verb("volumes:list_volumes", "pool=name", "@volume_list"),
    "vol-name": Verb("volumes:vol_name", "vol=volume"),
    "vol-path": Verb("volumes:path", "vol=volume pool"),
    "vol-pool": Verb("volumes:vol_pool", "vol=volume"),
    "vol-resize": Verb("volume_changes:resize", "vol=volume capacity pool", "@resized"),
    "vol-upload": Verb("volume_streams:upload", "vol=volume file pool offset length", "@nothing"),
    "vol-wipe": Verb("volume_changes:wipe", "vol=volume pool algorithm", "Vol {volume} wiped"),
}
