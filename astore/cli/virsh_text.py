"""What virsh prints, made from the JSON document of an answer and the arguments of the command."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from astore.cli.exits import CliError, Exit
from astore.cli.output import Answer, Output, escaped_xml, text_width
from astore.cli.virsh import VERBS
from astore.errors import printable

if TYPE_CHECKING:
    from astore.model import VolumeDef

Document = Mapping[str, Any]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def verb_of(context: click.Context) -> str:
    """Return the virsh name of a command. :raises CliError: it has none."""
    assert context.info_name is not None
    if context.info_name in VERBS:
        return context.info_name
    group = context.parent.info_name if context.parent is not None else ""
    name = f"{group}-{context.info_name}"
    if name not in VERBS:
        raise CliError(f"virsh has nothing like `{context.command_path}`: leave --virsh out", Exit.USAGE)
    return name


def show(answer: Answer, output: Output, context: click.Context, *, quiet: bool) -> None:
    """Write an answer as virsh does. :param quiet: no sentences and headings, as with virsh's -q."""
    verb = VERBS[verb_of(context)]
    found = answer.document() if callable(answer.document) else answer.document
    document: Document = msgspec.to_builtins(found)
    if not verb.says or (document.keys() == {"xml"} and verb.says != "@xml"):
        answer.show(output)
    elif verb.says.startswith("@"):
        for line in _TEXTS[verb.says](document, context.params, quiet):
            output.raw(line) if verb.says == "@xml" else output.line(line)
    elif not quiet:
        for fields in _successes(document, context.params):
            output.line(verb.says.format_map({**context.params, **fields, **answer.facts}))
    if not quiet and not answer.code:
        output.raw("")


def _successes(document: Document, arguments: Document) -> Sequence[Document]:
    """Return the documents of what went well, each with the name by which it was asked for."""
    results = document.get("results", document.get("pools"))
    if results is None:
        return [document]
    asked = list(dict.fromkeys(arguments.get("volumes") or arguments.get("names") or ()))
    if len(asked) != len(results):
        asked = [one["pool"] for one in results]
    return [{**one, "asked": name} for one, name in zip(results, asked, strict=True) if one["ok"]]


# -------------------------------------------------------------------------------------------------------------- texts


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], quiet: bool) -> list[str]:
    """Return the lines of a table as virsh draws it. :param quiet: without titles, which then take no room either."""
    cells = [[printable(cell) for cell in row] for row in rows]
    measured = cells if quiet else [list(titles), *cells]
    widths = [max((text_width(row[index]) for row in measured), default=0) for index in range(len(titles))]

    def line(row: Sequence[str]) -> str:
        *first, last = (cell + " " * (width - text_width(cell)) for cell, width in zip(row, widths, strict=True))
        return " " + "   ".join([*first, last.rstrip()])

    lines = [line(row) for row in cells]
    return lines if quiet else [line(titles), "-" * (sum(widths) + 3 * len(widths)), *lines]


def fields(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return lines with a name and a value each."""
    return [f"{name + ':':<15} {printable(value)}" for name, value in pairs]


def pretty(value: int) -> str:
    """Format bytes as virsh does: ``10.00 GiB``, ``512.00 B``."""
    amount, unit = float(value), 0
    while amount >= 1024 and unit + 1 < len(_UNITS):
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.2f} {_UNITS[unit]}"


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _pool_list(document: Document, arguments: Document, quiet: bool) -> list[str]:
    pools = sorted(document["pools"], key=lambda pool: pool["name"].lower())
    if arguments["names_only"] or arguments["uuids_only"]:
        name = "{name:<20}" if arguments["names_only"] else ""
        uuid = "{uuid:<36}" if arguments["uuids_only"] else ""
        return [" ".join(filter(None, (uuid, name))).format_map(pool) for pool in pools]
    titles = ["Name", "State", "Autostart"]
    if not arguments["details"]:
        rows = [
            [pool["name"], "active" if pool["active"] else "inactive", _yes_no(pool["autostart"])] for pool in pools
        ]
        return table(titles, rows, quiet)
    sizes = ("capacity", "allocation", "available")
    write: Callable[[int], str] = str if arguments["in_bytes"] else pretty
    rows = [
        [pool["name"], pool["state"], _yes_no(pool["autostart"]), _yes_no(pool["persistent"])]
        + [write(pool[name]) if pool["active"] else "-" for name in sizes]
        for pool in pools
    ]
    return table([*titles, "Persistent", "Capacity", "Allocation", "Available"], rows, quiet)


def _pool_info(document: Document, arguments: Document, quiet: bool) -> list[str]:
    pool = document["pool"]
    write: Callable[[int], str] = str if arguments["in_bytes"] else pretty
    sizes = ("capacity", "allocation", "available") if pool["active"] else ()
    return fields(
        [
            ("Name", pool["name"]),
            ("UUID", pool["uuid"]),
            ("State", pool["state"]),
            ("Persistent", _yes_no(pool["persistent"])),
            ("Autostart", _yes_no(pool["autostart"])),
            *((name.capitalize(), write(pool[name])) for name in sizes),
        ]
    )


def _volume_list(document: Document, arguments: Document, quiet: bool) -> list[str]:
    volumes = sorted(document["volumes"], key=lambda volume: volume["name"].lower())
    if arguments["names_only"]:
        return [volume["name"] for volume in volumes]
    rows = [[volume["name"], volume["path"]] for volume in volumes]
    if not arguments["details"]:
        return table(["Name", "Path"], rows, quiet)
    write: Callable[[int], str] = str if arguments["in_bytes"] else pretty
    rows = [
        [*row, volume["type"], write(volume["capacity"]), write(volume["allocation"])]
        for row, volume in zip(rows, volumes, strict=True)
    ]
    return table(["Name", "Path", "Type", "Capacity", "Allocation"], rows, quiet)


def _volume_info(document: Document, arguments: Document, quiet: bool) -> list[str]:
    write: Callable[[int], str] = "{} bytes".format if arguments["in_bytes"] else pretty
    shown = "physical" if arguments["physical"] else "allocation"
    pairs = [("Name", document["name"]), ("Type", document["type"]), ("Capacity", write(document["capacity"]))]
    return fields([*pairs, (shown.capitalize(), write(document[shown]))])


def _secret_list(document: Document, arguments: Document, quiet: bool) -> list[str]:
    secrets = sorted(document["secrets"], key=lambda secret: str(secret["uuid"]))
    rows = [[one["uuid"], f"{one['usage_type']} {one['usage']}" if one["usage"] else "Unused"] for one in secrets]
    return table(["UUID", "Usage"], rows, quiet)


def _autostart(document: Document, arguments: Document, quiet: bool) -> list[str]:
    word = "unmarked" if arguments["disable"] else "marked"
    return [] if quiet else [f"Pool {one['asked']} {word} as autostarted" for one in _successes(document, arguments)]


def _edited(document: Document, arguments: Document, quiet: bool) -> list[str]:
    word = "edited" if document["edited"] else "not changed"
    return [] if quiet else [f"Pool {document['pool']} XML configuration {word}."]


def _resized(document: Document, arguments: Document, quiet: bool) -> list[str]:
    how = "by" if arguments["delta"] else "to"
    return [] if quiet else [f"Size of volume '{document['name']}' successfully changed {how} {arguments['capacity']}"]


def _xml(document: Document, arguments: Document, quiet: bool) -> list[str]:
    """Write attributes in single quotes, as libvirt does, but for nodes that XPath chose, as libxml2 does."""
    text: str = document["xml"].rstrip("\n")
    if not arguments.get("xpath"):
        text = re.sub(r"<[^>]*>", lambda tag: re.sub(r'="([^"]*)"', _single, tag[0]), text)
    return [escaped_xml(text)] if text else []


def _single(match: re.Match[str]) -> str:
    return "='" + match[1].replace("'", "&apos;") + "'"


def _nothing(document: Document, arguments: Document, quiet: bool) -> list[str]:
    return []


_TEXTS: Mapping[str, Callable[[Document, Document, bool], list[str]]] = {
    "@pool_list": _pool_list,
    "@pool_info": _pool_info,
    "@volume_list": _volume_list,
    "@volume_info": _volume_info,
    "@secret_list": _secret_list,
    "@autostart": _autostart,
    "@edited": _edited,
    "@resized": _resized,
    "@xml": _xml,
    "@nothing": _nothing,
}


def timestamp(seconds: float) -> str:
    """Format seconds since the epoch as virsh does for events: UTC, with milliseconds."""
    whole = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}+0000"


def new_volume_document(new: VolumeDef, given: Mapping[str, Any]) -> str:
    """Return the document of a new volume that virsh sends to libvirt: what was given on the command line, and nothing else."""
    from lxml import etree

    whole = etree.fromstring(new.to_xml())  # which checks what is written
    root = etree.Element("volume")

    def add(parent: Any, tag: str, text: object = None, **attributes: str) -> Any:
        added = etree.SubElement(parent, tag, attributes)
        added.text = None if text is None else str(text)
        return added

    add(root, "name", new.name)
    if given["capacity"] is not None:
        add(root, "capacity", given["capacity"])
    if given["allocation"] is not None:
        add(root, "allocation", given["allocation"])
    permissions = whole.find("target/permissions")
    if given["format"] or permissions is not None:
        target = add(root, "target")
        if given["format"]:
            add(target, "format", type=given["format"])
        if permissions is not None:
            target.append(permissions)
    if new.backing is not None:
        place = add(root, "backingStore")
        add(place, "path", new.backing.path)
        if new.backing.format:
            add(place, "format", type=new.backing.format)
    etree.indent(root)
    text = etree.tostring(root, encoding="unicode")
    return re.sub(r'<format type="([^"\']*)"/>', r"<format type='\1'/>", text) + "\n"
