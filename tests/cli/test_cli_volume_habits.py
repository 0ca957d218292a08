"""Addresses of volumes, moving, uploads that unpack or come from a server, checks and snapshots."""

from __future__ import annotations

import bz2
import gzip
import http.server
import lzma
import os
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Path]

DATA = bytes(range(256)) * 4096


def test_addresses(astore: Any, make_pool: Make) -> None:
    """POOL/VOLUME, POOL:VOLUME, a path and a key mean the same; a list without a pool shows all."""
    folder = make_pool("images")
    make_pool("isos")
    for text in ("images/web.qcow2", "images:web.qcow2", f"{folder}/web.qcow2"):
        assert astore.good("vol", "path", text).out == f"{folder}/web.qcow2\n"
    assert astore("vol", "path", "web.qcow2").code == 2
    assert astore("vol", "path", "images/none").code == 3
    assert astore("vol", "path", "none/web.qcow2").code == 3
    listed = astore.good("vol", "list", "--name").out.split()
    assert listed == ["images/base.qcow2", "images/web.qcow2", "isos/base.qcow2", "isos/web.qcow2"]
    table = astore.good("vol", "list").out.splitlines()
    assert table[0].split()[:2] == ["Pool", "Name"]
    assert len(table) == 5
    (folder / "late").write_bytes(b"x")
    assert astore.good("vol", "path", "images/late").out == f"{folder}/late\n"


def test_parts_of_documents(astore: Any, make_pool: Make) -> None:
    """By XPath, as virsh prints them."""
    folder = make_pool("images")
    shown = partial(astore.good, "vol", "dumpxml", "images/web.qcow2", "--xpath")
    assert shown("//target/path").out == f"<path>{folder}/web.qcow2</path>\n"
    assert shown("//target/path/text()").out == f"{folder}/web.qcow2\n"
    assert shown("//target/format/@type").out == ' type="qcow2"\n'
    assert shown("//name", "--wrap").out == "<nodes>\n  <name>web.qcow2</name>\n</nodes>\n"
    assert shown("//nothing").out == ""
    for wrong in ("///[", "count(//name)"):
        assert astore("pool", "dumpxml", "images", "--xpath", wrong).code == 2


@pytest.mark.qemu
def test_who_owns_a_new_volume(astore: Any, tmp_path: Path) -> None:
    """The options say it, or the pool's definition; virsh's name has no such default."""
    file = tmp_path / "a.xml"
    permissions = "<permissions><owner>1</owner><group>2</group></permissions>" if os.geteuid() == 0 else ""
    file.write_text(f"<pool type='dir'><name>a</name><target><path>{tmp_path}/a</path>{permissions}</target></pool>")
    astore.good("pool", "define", str(file))
    astore.good("pool", "start", "a", "--build")
    astore.good("vol", "create", "a", "v", "1K")
    astore.good("vol-create-as", "a", "w", "1K")
    if permissions:
        astore.good("vol", "create", "a", "x", "1K", "--owner", "daemon", "--group", "3", "--mode", "0640")
        found = {one.name: (one.stat().st_uid, one.stat().st_gid) for one in (tmp_path / "a").iterdir()}
        assert found == {"v": (1, 2), "w": (0, 0), "x": (1, 3)}
    for option in ("--owner", "--group"):
        assert "there is no such" in astore("vol", "create", "a", "y", "1K", option, "nobody-knows").complaint
    assert astore.good("vol", "create", "a", "z", "1K").out == "volume 'z' created (format raw)\n"
    assert astore.good("vol", "create", "a", "q", "1M", "--format", "qcow2").out == "volume 'q' created\n"


def test_moving_a_volume(astore: Any, make_pool: Make, tmp_path: Path) -> None:
    """It is in the other pool with the same bytes, and no longer where it was; one that others need stays."""
    folder, other = make_pool("images"), make_pool("archive")
    (folder / "a.raw").write_bytes(DATA)
    os.truncate(folder / "a.raw", 32 << 20)
    astore.good("pool", "refresh", "images")
    moved = astore.good("vol", "move", "images/a.raw", "archive")
    assert moved.out == "volume 'a.raw' moved from pool 'images' to 'archive'\n"
    assert not (folder / "a.raw").exists()
    assert (other / "a.raw").read_bytes()[: len(DATA)] == DATA
    assert (other / "a.raw").stat().st_size == 32 << 20
    astore.good("vol", "move", "archive/a.raw", "images/b.raw")
    assert (folder / "b.raw").exists()
    ran = astore("vol", "move", "images/base.qcow2", "archive/base2.qcow2")
    assert ran.code == 1
    assert "what others are backed by (web.qcow2)" in ran.complaint
    ran = astore("vol", "move", "images/web.qcow2", "archive/web2.qcow2")
    assert ran.code == 1
    assert "`astore vol clone images/web.qcow2 archive/web2.qcow2` makes a copy that needs none" in ran.complaint
    assert sorted(path.name for path in other.iterdir()) == ["base.qcow2", "web.qcow2"]
    assert astore("vol", "move", "images/b.raw", "images").code == 2
    assert astore("vol", "move", "images/b.raw", "nobody").code == 3


def test_new_names_are_addresses(astore: Any, make_pool: Make) -> None:
    """A new name may be given with its pool; a pool that is not there is told, and so is a volume's pool that is another."""
    folder = make_pool("images")
    make_pool("archive")
    (folder / "a.raw").write_bytes(DATA)
    astore.good("pool", "refresh", "images")
    astore.good("vol", "rename", "images/a.raw", "images:b.raw")
    astore.good("vol", "rename", "b.raw", "images/c.raw")
    assert (folder / "c.raw").read_bytes() == DATA
    ran = astore("vol", "rename", "c.raw", "archive/c.raw")
    assert (ran.code, "`astore vol move VOLUME archive/c.raw` moves it" in ran.complaint) == (2, True)
    for command in (("rename", "c.raw", "nope/d"), ("clone", "c.raw", "nope/d"), ("move", "c.raw", "nope/d")):
        ran = astore("vol", *command)
        assert (ran.code, ran.complaint.partition(":")[0]) == (3, "there is no pool 'nope'")
    assert astore.good("vol", "path", "images/c.raw", "--pool", "images").out == f"{folder}/c.raw\n"
    assert astore.good("vol", "path", "images:c.raw", "--pool", "images").out == f"{folder}/c.raw\n"
    assert "is not in pool 'archive'" in astore("vol", "path", "images/c.raw", "--pool", "archive").complaint
    assert "no such user" in astore("vol", "create", "images", "e", "1K", "--owner", "99999999999").complaint
    for source in ("https://localhost:no/x", "https://localhost/a b"):
        ran = astore("vol", "upload", "c.raw", source)
        assert (ran.code, "fault of astore" in ran.complaint) == (1, False)


def test_a_name_is_rather_a_name_than_an_address(astore: Any, make_pool: Make) -> None:
    """A file whose name looks like an address beside --pool is meant by it, even if the last refresh has not seen it."""
    folder = make_pool("images")
    (folder / "a.raw").write_bytes(DATA)
    astore.good("pool", "refresh", "images")
    (folder / "images:a.raw").write_bytes(b"odd")
    astore.good("vol-delete", "images:a.raw", "--pool", "images")
    assert (folder / "a.raw").read_bytes() == DATA
    assert not (folder / "images:a.raw").exists()
    astore.good("vol-clone", "a.raw", "images:b.raw", "--pool", "images")
    assert (folder / "images:b.raw").read_bytes() == DATA
    assert "has a '/'" in astore("vol", "rename", "a.raw", "/tmp/x").complaint


def test_options_that_are_not_there(astore: Any, make_pool: Make) -> None:
    """Virsh's options under our names lead to virsh's; so do misspelt ones, also where a negative number is a word."""
    make_pool("images")
    for words, verb in (("vol info --vol a", "vol-info"), ("pool define-as --name a", "pool-define-as")):
        ran = astore(*words.split())
        assert (ran.code, f"`astore {verb}` takes virsh's options" in ran.complaint) == (2, True)
    for words in ("vol resize images/web.qcow2 1M --shrnk", "vol-resize web.qcow2 1M --pol images"):
        assert "Did you mean" in astore(*words.split()).complaint
    options = ("--vol", "web.qcow2", "--pool", "images", "--shrink", "--delta", "--capacity", "-1M")
    assert "changed by -1M" in astore.good("vol-resize", *options).out
    ran = astore("secret-set-value", "8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11", "dmFs")
    assert "Other users can see arguments" in ran.complaint and "dmFs" not in ran.err


def test_a_copy_that_differs_is_removed(astore: Any, make_pool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the volume stays where it is."""
    folder, other = make_pool("images"), make_pool("archive")
    (folder / "a.raw").write_bytes(DATA)

    async def differs(*_: object) -> bool:
        return False

    monkeypatch.setattr("astore.cli.volume_copies.same_content", differs)
    ran = astore("vol", "move", "images/a.raw", "archive")
    assert ran.code == 1
    assert "differs from it" in ran.complaint
    assert (folder / "a.raw").read_bytes() == DATA
    assert not (other / "a.raw").exists()


@pytest.mark.parametrize(
    ("end", "pack"),
    [(".gz", gzip.compress), (".XZ", lzma.compress), (".bz2", bz2.compress), (".zst", None), (".zstd", None)],
)
def test_compressed_files_are_unpacked(
    astore: Any, folder: Path, tmp_path: Path, end: str, pack: Callable[[bytes], bytes] | None
) -> None:
    """By the end of their names, unless told otherwise or under virsh's name; --replace leaves nothing behind."""
    file = tmp_path / f"content{end}"
    if pack is None:
        (tmp_path / "content").write_bytes(DATA)
        subprocess.run(["zstd", "-q", str(tmp_path / "content"), "-o", str(file)], check=True)
    else:
        file.write_bytes(pack(DATA))
    astore.good("vol", "upload", "a.raw", str(file), "--replace")
    assert (folder / "a.raw").read_bytes() == DATA
    astore.good("vol", "upload", "a.raw", str(file), "--no-unpack", "--replace")
    assert (folder / "a.raw").read_bytes() == file.read_bytes()
    astore.good("vol-upload", "a.raw", str(file))
    assert (folder / "a.raw").read_bytes() == file.read_bytes()
    file.write_bytes(file.read_bytes()[:-20])
    ran = astore("vol", "upload", "a.raw", str(file))
    assert ran.code == 1
    assert str(file) in ran.complaint


def test_a_file_that_is_too_long_is_refused_before_anything_is_written(
    astore: Any, folder: Path, tmp_path: Path
) -> None:
    """Its length is known."""
    (tmp_path / "content").write_bytes(DATA)
    before = (folder / "a.raw").read_bytes()
    ran = astore("vol", "upload", "a.raw", str(tmp_path / "content"), "--length", "1000")
    assert ran.code == 1
    assert ran.complaint.endswith("nothing was written")
    assert (folder / "a.raw").read_bytes() == before
    assert astore("vol", "upload", "a.raw", "x", "--replace", "--offset", "1").code == 2


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an https server for the folder ``www``, whose certificate is trusted."""
    (tmp_path / "www").mkdir()
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        """Serves files, redirects one, and breaks off one."""

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/elsewhere":
                self.send_response(302)
                self.send_header("Location", "http://localhost/x")
                self.end_headers()
            elif self.path == "/short":
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(b"x" * 1000)
            else:
                super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www")))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_uploads_from_a_server(astore: Any, folder: Path, tmp_path: Path, served: str) -> None:
    """What https sends is written, unpacked if need be; all else is refused in one line."""
    (tmp_path / "www" / "a").write_bytes(DATA)
    (tmp_path / "www" / "a.gz").write_bytes(gzip.compress(DATA[::-1]))
    astore.good("vol", "upload", "a.raw", f"{served}/a", "--replace")
    assert (folder / "a.raw").read_bytes() == DATA
    astore.good("vol", "upload", "a.raw", f"{served}/a.gz?x=y", "--replace")
    assert (folder / "a.raw").read_bytes() == DATA[::-1]
    for url, why in (
        (f"{served}/none", "the server says 404"),
        (f"{served}/elsewhere", "not https"),
        (f"{served}/short", "broke off"),
        (served.replace("https", "http"), "use https"),
        ("https://localhost:1/x", "Connection refused"),
    ):
        ran = astore("vol", "upload", "a.raw", url)
        assert ran.code == 1
        assert why in ran.complaint


@pytest.mark.qemu
def test_checks_and_snapshots(astore: Any, folder: Path) -> None:
    """Sound, damaged, raw and used images; nothing is changed."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(folder / "bad.qcow2"), "1M"], check=True)
    subprocess.run(["qemu-img", "snapshot", "-c", "first", str(folder / "bad.qcow2")], check=True)
    astore.good("pool", "refresh", "images")
    listed = astore.good("vol", "snapshots", "images/bad.qcow2", "--json").json()
    assert [one["name"] for one in listed["snapshots"]] == ["first"]
    assert "first" in astore.good("vol", "snapshots", "bad.qcow2").out
    assert astore("vol", "snapshots", "a.raw").code == 1
    astore.good("vol", "check", "web.qcow2", "base.qcow2")
    with open(folder / "bad.qcow2", "r+b") as file:  # the refcount of the header's cluster
        file.seek(0x20000)
        file.write(bytes(8))
    before = (folder / "bad.qcow2").read_bytes()
    ran = astore("vol", "check", "--all", "--json")
    verdicts = {one["volume"]: one["verdict"] for one in ran.json()["volumes"]}
    assert verdicts == {"a.raw": "skipped", "bad.qcow2": "damaged", "base.qcow2": "ok", "web.qcow2": "ok"}
    assert ran.code == 4
    assert ran.complaint == "volume 'bad.qcow2' of pool 'images' is damaged"
    assert (folder / "bad.qcow2").read_bytes() == before
    assert astore("vol", "check").code == 2
