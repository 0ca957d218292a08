"""Secret documents, read and written by libvirt and by astore."""

from __future__ import annotations

import json
import subprocess

import pytest

from astore import DefinitionError
from astore.xml import secret_from_xml, secret_to_xml
from beds.libvirt import LibvirtBed

ASK = """
import json, sys, libvirt
libvirt.registerErrorHandler(lambda *_: None, None)
uri, documents = json.load(sys.stdin)
connection = libvirt.open(uri)
answers = []
for document in documents:
    try:
        secret = connection.secretDefineXML(document)
        answers.append([secret.XMLDesc(), 0])
        secret.undefine()
    except libvirt.libvirtError as error:
        answers.append([None, error.get_error_code()])
json.dump(answers, sys.stdout)
"""
"""For Debian's own Python, which has libvirt's bindings: what libvirt writes of each document, or its error's number."""

UUID = "0A81F5B2-8403-7b23-c8d6-21ccc2f80d6f"
USAGES = [
    "",
    "<usage/>",
    "<usage type=''/>",
    "<usage type='none'/>",
    "<usage type='none'><name>x</name></usage>",
    "<usage type='nonsense'><name>x</name></usage>",
    "<usage type='volume'><volume>/var/a.luks</volume></usage>",
    "<usage type='volume'><volume>relative</volume></usage>",
    "<usage type='volume'><name>x</name></usage>",
    "<usage type='ceph'><name>client.admin secret</name></usage>",
    "<usage type='ceph'><name/></usage>",
    "<usage type='ceph'><name>a&lt;b&amp;c'd\"e</name></usage>",
    "<usage type='ceph'><name> blank </name></usage>",
    "<usage type='ceph'><name>one</name><name>two</name></usage>",
    "<usage type='iscsi'><target>iqn.2013-07.com.example:iscsi-pool</target></usage>",
    "<usage type='iscsi'><name>x</name></usage>",
    "<usage type='tls'><name>tls</name></usage>",
    "<usage type='tls'/>",
    "<usage type='vtpm'><name>../../etc</name></usage>",
    "<usage type='vtpm'><target>x</target></usage>",
    "<usage type='ceph'><name>one</name></usage><usage type='tls'><name>two</name></usage>",
]
DOCUMENTS = [
    *(f"<secret><uuid>{UUID}</uuid>{usage}</secret>" for usage in USAGES),
    f"<secret ephemeral='yes' private='yes'><uuid>{UUID}</uuid><description>a &amp; b</description></secret>",
    f"<secret ephemeral='no' private='no'><description/><uuid>{UUID.replace('-', '')}</uuid></secret>",
    f"<secret ephemeral=''><uuid>{UUID}</uuid></secret>",
    f"<secret ephemeral='maybe'><uuid>{UUID}</uuid></secret>",
    f"<secret private='YES'><uuid>{UUID}</uuid></secret>",
    "<secret><uuid>nonsense</uuid></secret>",
    "<secret><uuid/></secret>",
    f"<secret><uuid>{UUID}</uuid><nonsense/><x:more xmlns:x='urn:x'/></secret>",
    "<pool/>",
    "<secret",
    "",
]


def theirs(bed: LibvirtBed) -> list[tuple[str | None, int]]:
    """What libvirt makes of each document."""
    done = subprocess.run(
        ["/usr/bin/python3", "-c", ASK],
        input=json.dumps([bed.secrets_uri, DOCUMENTS]),
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return [(xml, code) for xml, code in json.loads(done.stdout)]


def ours(document: str, uuid: str | None) -> tuple[str | None, int]:
    """What astore makes of a document. :param uuid: what libvirt chose."""
    import msgspec

    try:
        found = secret_from_xml(document)
    except DefinitionError as error:
        return None, int(error.libvirt_code)
    return secret_to_xml(msgspec.structs.replace(found, uuid=found.uuid or uuid)), 0


@pytest.mark.root
@pytest.mark.libvirt
def test_documents(libvirt_bed: LibvirtBed) -> None:
    """Each document is accepted by both or by neither, with the same error number, and means the same."""
    differing = []
    for document, (xml, code) in zip(DOCUMENTS, theirs(libvirt_bed), strict=True):
        chosen = None if xml is None else secret_from_xml(xml).uuid
        wanted = None if xml is None else _canonical(xml), code
        mine, my_code = ours(document, chosen)
        if (None if mine is None else _canonical(mine), my_code) != wanted:
            differing.append((document, wanted, mine, my_code))
    assert differing == []


def _canonical(xml: str) -> str:
    from lxml import etree

    return etree.canonicalize(xml, strip_text=False, with_comments=False)
