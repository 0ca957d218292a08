"""``astore pool define-as`` and ``create-as``: pools from options instead of a document, as virsh has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from astore.cli.command_line import argument, complete_files, option
from astore.cli.completion import (
    complete_secret,
    complete_source_format,
    complete_type,
    complete_usage,
    completion_of,
)
from astore.cli.exits import CliError, Exit, explain, transient
from astore.cli.many import Outcome, answer
from astore.cli.output import Answer, xml_answer
from astore.cli.pools import build_options, check_overwriting, when_taken, without_backend
from astore.cli.session import Session, command
from astore.errors import DefinitionError
from astore.xml.known_types import AUTH_TYPES

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    ("source-host", "HOST", "The server that has the storage."),
    ("source-path", "PATH", "The folder on the server, or in its volume."),
    ("source-dev", "DEVICE", "The block device, or the target's name."),
    ("source-name", "NAME", "The name of the volume, group or pool on the server."),
    ("target", "PATH", "The folder on this machine: the pool itself, or where it is mounted."),
    ("source-format", "FORMAT", "nfs, glusterfs, cifs ..."),
    ("auth-type", "TYPE", ", ".join(AUTH_TYPES) + "."),
    ("auth-username", "USER", "Who logs in."),
    ("secret-usage", "USAGE", "The secret's usage."),
    ("secret-uuid", "UUID", "The secret's UUID."),
    ("adapter-name", "NAME", "The name of a SCSI host."),
    ("adapter-wwnn", "WWNN", "The node name of a virtual host bus adapter."),
    ("adapter-wwpn", "WWPN", "Its port name."),
    ("adapter-parent", "NAME", "Its parent's SCSI host."),
    ("adapter-parent-wwnn", "WWNN", "Its parent's node name."),
    ("adapter-parent-wwpn", "WWPN", "Its parent's port name."),
    ("adapter-parent-fabric-wwn", "WWN", "Its parent's fabric name."),
    ("source-protocol-ver", "VERSION", "The version of NFS to mount with."),
    ("source-initiator", "IQN", "The initiator's name (IQN)."),
)

_COMPLETED: Mapping[str, Callable[..., Any]] = {
    "source-dev": complete_files,
    "target": complete_files,
    "source-format": complete_source_format,
    "auth-type": completion_of(*AUTH_TYPES),
    "secret-usage": complete_usage,
    "secret-uuid": complete_secret,
}
"""The completions of options, by their names."""


def definition_options(command: F) -> F:
    """Add the arguments and options that describe a pool."""
    decorated = option("--print-xml", is_flag=True, help="Only print the definition.")(command)
    for name, metavar, help in reversed(_OPTIONS):
        decorated = option(f"--{name}", metavar=metavar, help=help, shell_complete=_COMPLETED.get(name))(decorated)
    type_ = argument("type", metavar="TYPE", help="dir, netfs, gluster ...", shell_complete=complete_type)
    return argument("name", metavar="NAME", help="The pool's name.")(type_(decorated))


@command("define-as")
@definition_options
async def define_as(session: Session, name: str, type: str, print_xml: bool, **given: str | None) -> Answer:
    """Define a pool from options. A dash stands for an option that is not given."""
    xml = written(name, type, given)
    if print_xml:
        return xml_answer(xml)
    session.ticker.begin("defining")
    with without_lines(_ADVICE):
        made = await session.manager.define(xml)
    warnings = without_backend(session, [made])
    return answer("define", [Outcome(name, made, None)], "pool {name} defined", warnings=warnings, more=when_taken)


@command("create-as")
@definition_options
@build_options
async def create_as(
    session: Session,
    name: str,
    type: str,
    print_xml: bool,
    build: bool,
    overwrite: bool,
    no_overwrite: bool,
    **given: str | None,
) -> Answer:
    """Start a transient pool from options. A dash stands for an option that is not given."""
    check_overwriting(overwrite, no_overwrite)
    xml = written(name, type, given)
    if print_xml:
        return xml_answer(xml)
    session.ticker.begin("creating")
    with without_lines(_ADVICE), transient():
        made = await session.manager.create(xml, build=build, timeout=session.settings.timeout)
    return answer("create", [Outcome(name, made, None)], "pool {name} created")


_ADVICE = "`--help` names the options, --print-xml prints what they make"


@contextmanager
def without_lines(advice: str) -> Iterator[None]:
    """Leave out where in the document an error is: the user gave options. :raises CliError: instead of such an error."""
    try:
        yield
    except DefinitionError as error:
        if error.line is None:
            raise
        what = explain(error).partition(": ")[2]
        raise CliError(f"{what}: {advice}") from error


# ----------------------------------------------------------------------------------------------------- the document


def written(name: str, type: str, options: Mapping[str, str | None]) -> str:
    """Write the ``<pool>`` document that virsh writes for these options, by their names with underscores.

    :raises CliError: options that belong together are not given together.
    """
    given = {key: value for key, value in options.items() if value not in (None, "-")}
    _check_pairs(given)
    lines = [f"<pool type={_quoted(type)}>", f"  <name>{_escaped(name)}</name>"]
    if source := list(_source(given)):
        lines += ["  <source>", *(f"    {line}" for line in source), "  </source>"]
    if target := given.get("target"):
        lines += ["  <target>", f"    <path>{_escaped(target)}</path>", "  </target>"]
    return "\n".join([*lines, "</pool>"]) + "\n"


def _check_pairs(given: Mapping[str, str | None]) -> None:
    for one, other in (("auth_type", "auth_username"), ("adapter_wwnn", "adapter_wwpn")):
        if (one in given) != (other in given):
            raise CliError(f"{_shown(one)} and {_shown(other)}: say both, or none of them", Exit.USAGE)
    if "secret_usage" in given and "secret_uuid" in given:
        raise CliError("--secret-usage and --secret-uuid: say one of them", Exit.USAGE)
    if "auth_type" in given and not given.keys() & {"secret_usage", "secret_uuid"}:
        raise CliError("--auth-type: say which secret, by --secret-usage or --secret-uuid", Exit.USAGE)


def _shown(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _source(given: Mapping[str, str | None]) -> Sequence[str]:
    """Return the lines within ``<source>``, in virsh's order."""
    lines = []
    for key, element, attribute in (("host", "host", "name"), ("path", "dir", "path"), ("dev", "device", "path")):
        if value := given.get(f"source_{key}"):
            lines.append(f"<{element} {attribute}={_quoted(value)}/>")
    if value := given.get("source_initiator"):
        lines += ["<initiator>", f"  <iqn name={_quoted(value)}/>", "</initiator>"]
    lines += _adapter(given)
    if "auth_type" in given:
        key = "uuid" if "secret_uuid" in given else "usage"
        lines.append(f"<auth {_attributes(given, ('auth_type', 'type'), ('auth_username', 'username'))}>")
        lines += [f"  <secret {_attributes(given, (f'secret_{key}', key))}/>", "</auth>"]
    if value := given.get("source_format"):
        lines.append(f"<format type={_quoted(value)}/>")
    if value := given.get("source_name"):
        lines.append(f"<name>{_escaped(value)}</name>")
    if value := given.get("source_protocol_ver"):
        lines.append(f"<protocol ver={_quoted(value)}/>")
    return lines


def _adapter(given: Mapping[str, str | None]) -> list[str]:
    if "adapter_wwnn" in given:
        names = ("parent", "parent_wwnn", "parent_wwpn", "parent_fabric_wwn", "wwnn", "wwpn")
        return [f"<adapter type='fc_host' {_attributes(given, *((f'adapter_{one}', one) for one in names))}/>"]
    if value := given.get("adapter_name"):
        return [f"<adapter type='scsi_host' name={_quoted(value)}/>"]
    return []


def _attributes(given: Mapping[str, str | None], *names: tuple[str, str]) -> str:
    return " ".join(f"{attribute}={_quoted(value)}" for key, attribute in names if (value := given.get(key)))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _quoted(text: str) -> str:
    return f"'{_escaped(text).replace(chr(39), '&apos;')}'"
