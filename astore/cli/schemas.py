"""Validation of documents by libvirt's RELAX NG schemas, where they are installed: virsh's ``--validate``."""

from __future__ import annotations

import os
from typing import Literal

from astore.cli.command_line import option
from astore.cli.exits import CliError
from astore.errors import DefinitionError

FOLDER = "/usr/share/libvirt/schemas"
"""Where libvirt's packages put them (Debian: libvirt-common or libvirt0; Fedora: libvirt-libs)."""

_FILES = {"pool": "storagepool.rng", "volume": "storagevol.rng"}

validate_option = option("--validate", is_flag=True, help="Check it by libvirt's schema, which must be installed.")


async def validated(xml: bytes, kind: Literal["pool", "volume"]) -> bytes:
    """Return a document that libvirt's schema allows.

    :raises DefinitionError: it does not. CliError: the schema is not installed.
    """
    from anyio import to_thread

    await to_thread.run_sync(_validate, xml, kind)
    return xml


def _validate(xml: bytes, kind: str) -> None:
    from lxml import etree

    from astore.xml.reading import parse

    schema = os.path.join(FOLDER, _FILES[kind])
    if not os.path.exists(schema):
        raise CliError(f"--validate: there is no {schema}: install libvirt's schemas (Debian: libvirt0)")
    root = parse(xml, kind)
    rules = etree.RelaxNG(file=schema)
    if not rules.validate(root):
        first = rules.error_log[0]
        raise DefinitionError(f"libvirt's schema does not allow it: {first.message}", line=first.line)
