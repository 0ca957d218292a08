"""``astore secret``: passwords and keys, which are read from a file, standard input or a prompt, and never shown."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from astore.cli.command_line import argument, option
from astore.cli.completion import complete_secret, complete_usage
from astore.cli.exits import CliError, Exit, why_unread
from astore.cli.output import Answer, Column, Output
from astore.cli.session import secret_command
from astore.cli.xpath import filtered, xpath_options
from astore.xml.known_types import USAGES

if TYPE_CHECKING:
    from astore.cli.documents import Document
    from astore.model import SecretDef
    from astore.secrets import KnownSecret, SecretFiles

_LARGEST = 1 << 20
"""The most bytes to read of a definition or a value."""

usage_arguments = (
    argument("usage_type", metavar="TYPE", type=click.Choice(USAGES[1:]), help=", ".join(USAGES[1:]) + "."),
    argument(
        "usage",
        metavar="NAME",
        help="The name that definitions use: <secret usage='NAME'/>.",
        shell_complete=complete_usage,
    ),
)
uuid_argument = argument("uuid", metavar="UUID", help="A secret's UUID.", shell_complete=complete_secret)
file_option = option("--file", metavar="FILE", help="Read the value from a file; `-` is standard input.")


def _with_usage(function: Any) -> Any:
    return usage_arguments[0](usage_arguments[1](function))


@secret_command("set")
@_with_usage
@file_option
def set_secret(secrets: SecretFiles, usage_type: str, usage: str, file: str | None) -> Answer:
    """Keep a value under a name; define the secret if there is none of this name.

    The value is the text without the newline at its end; of a type whose keys are printed as base64, the key. It is read from
    standard input, or asked for on a terminal.
    """
    from astore.secrets import value_from_text

    text = _read_value(file, f"Value of the {usage_type} secret {usage!r}")
    definition = secrets.set(usage_type, usage, value_from_text(text, usage_type))
    return _answer(definition, True, f"secret {usage_type} {usage!r} is set")


@secret_command("remove")
@_with_usage
def remove(secrets: SecretFiles, usage_type: str, usage: str) -> Answer:
    """Remove a secret, by its type and name, with its value."""
    definition = secrets.by_usage(usage_type, usage)
    secrets.undefine(definition.uuid or "")
    return _answer(definition, False, f"secret {usage_type} {usage!r} is removed")


@secret_command("define")
@argument("file", metavar="FILE", help="libvirt secret XML; `-` is standard input.")
def define(secrets: SecretFiles, file: str) -> Answer:
    """Define a secret, or define it anew, from libvirt XML. Its value stays."""
    definition = secrets.define(_read(file))
    return _answer(definition, None, f"secret {definition.uuid} defined")


@secret_command("set-value")
@uuid_argument
@file_option
@option("--plain", is_flag=True, help="The value is no base64.")
@option("--interactive", is_flag=True, help="Ask for the value on the terminal; it is no base64 then.")
def set_value(secrets: SecretFiles, uuid: str, file: str | None, plain: bool, interactive: bool) -> Answer:
    """Set the value of a defined secret, in base64 unless it is --plain. (`secret set` defines it, too.)"""
    from astore.secrets import value_from_base64

    if interactive and (file is not None or not sys.stdin.isatty()):
        raise CliError("--interactive needs a terminal, and no --file", Exit.USAGE)
    definition = secrets.definition(uuid)
    asked = file is None and sys.stdin.isatty()
    text = _read_value(file, f"Value of the secret {definition.uuid}")
    secrets.set_value(uuid, text if plain or asked else value_from_base64(text))
    return _answer(definition, True, f"secret {definition.uuid}: its value is set")


@secret_command("undefine")
@uuid_argument
def undefine(secrets: SecretFiles, uuid: str) -> Answer:
    """Remove a secret, by its UUID, with its value."""
    definition = secrets.definition(uuid)
    secrets.undefine(uuid)
    return _answer(definition, False, f"secret {definition.uuid} undefined")


@secret_command("dumpxml")
@uuid_argument
@xpath_options
def dumpxml(secrets: SecretFiles, uuid: str, xpath: str | None, wrap: bool) -> Answer:
    """Print a secret's libvirt XML, which has no value."""
    from astore.xml import secret_to_xml

    return filtered(secret_to_xml(secrets.definition(uuid)), xpath, wrap)


@secret_command("list")
def list_secrets(secrets: SecretFiles) -> Answer:
    """List the secrets of the state folder."""
    found, damaged = secrets.all()

    def show(output: Output) -> None:
        columns = [Column("UUID"), Column("Type"), Column("Name", folds=True), Column("Value")]
        rows = [_row(one) for one in found]
        output.table(columns, rows, empty="no secrets yet: `astore secret set TYPE NAME` makes one")

    documents = [_document(one.definition, one.has_value) for one in found]
    return Answer({"secrets": documents}, show, damaged)


def _row(one: KnownSecret) -> list[str]:
    definition = one.definition
    return [definition.uuid or "", definition.usage_type, definition.usage or "-", "kept" if one.has_value else "none"]


def _answer(definition: SecretDef, has_value: bool | None, said: str) -> Answer:
    return Answer(_document(definition, has_value), lambda output: output.line(said))


def _document(definition: SecretDef, has_value: bool | None) -> Document:
    return {**msgspec.to_builtins(definition), "has_value": has_value}


def _read_value(file: str | None, prompt: str) -> bytes:
    """Read a value. :raises CliError: it cannot be read."""
    if file is None and sys.stdin.isatty():
        return str(click.prompt(prompt, hide_input=True, err=True)).encode("utf-8", "surrogateescape")
    return _read("-" if file is None else file)


def _read(file: str) -> bytes:
    """Read a file, or standard input (`-`). :raises CliError: it cannot be read, or is too long."""
    try:
        if file == "-":
            content = sys.stdin.buffer.read(_LARGEST + 1)
        else:
            with open(file, "rb") as stream:
                content = stream.read(_LARGEST + 1)
    except OSError as error:
        shown = "standard input" if file == "-" else file
        raise CliError(f"{shown} cannot be read: {why_unread(file, error)}") from error
    if len(content) > _LARGEST:
        raise CliError(f"{'standard input' if file == '-' else file} is longer than {_LARGEST} bytes")
    return content
