"""What the command refuses, warns of and suggests: files that are volumes, names that mislead, and names that are misspelt."""

from __future__ import annotations

import gzip
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from astore import errors
from astore.cli import upload_sources
from astore.cli.exits import CliError, explain
from astore.cli.local_files import in_thread, target_for
from astore.cli.shell import candidates, split
from astore.cli.similar import closest
from beds.images import template

Make = Callable[..., Path]

# ------------------------------------------------------------------------------------------------------------ downloads


@pytest.mark.parametrize("verb", [("vol", "download"), ("vol-download",)])
def test_a_download_replaces_no_volume(astore: Any, folder: Path, tmp_path: Path, verb: tuple[str, ...]) -> None:
    """However its path is spelled: the volume itself, another, one that others are backed by, and one that is new."""
    (tmp_path / "link").symlink_to(folder / "base.qcow2")
    os.link(folder / "web.qcow2", tmp_path / "hard")
    (folder / "unseen").write_bytes(b"x")
    before = {one.name: one.read_bytes() for one in folder.iterdir()}
    for target, name in (
        (folder / "a.raw", "a.raw"),
        (folder / "base.qcow2", "base.qcow2"),
        (folder / "unseen", "unseen"),
        (tmp_path / "link", "base.qcow2"),
        (tmp_path / "hard", "web.qcow2"),
    ):
        ran = astore(*verb, "a.raw", str(target))
        assert (ran.code, ran.out) == (1, "")
        assert (
            f" is volume '{name}' of pool 'images': name another file, or `astore vol delete images/" in ran.complaint
        )
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == before
    astore.good(*verb, "a.raw", str(folder / "new"))
    astore.good("pool", "stop", "images")


def test_a_download_replaces_no_backing_file(astore: Any, make_pool: Make, tmp_path: Path) -> None:
    """Which need not be in a pool; the file of a volume that was removed may be anything's by now."""
    folder = make_pool("images")
    outside = tmp_path / "outside"
    outside.mkdir()
    template("qcow2", 10 << 30).write(outside / "base")
    template("qcow2", 10 << 30, str(outside / "base"), "qcow2").write(folder / "on.qcow2")
    (folder / "gone.raw").write_bytes(b"x")
    astore.good("pool", "refresh", "images")
    os.link(outside / "base", tmp_path / "hard")
    for target in (outside / "base", tmp_path / "hard"):
        ran = astore("vol", "download", "web.qcow2", str(target))
        assert ran.complaint == f"{target} has data of volume 'on.qcow2' of pool 'images': name another file"
    (folder / "gone.raw").rename(outside / "moved")
    astore.good("vol", "download", "web.qcow2", str(outside / "moved"))


async def test_a_device_that_is_refused_is_closed(tmp_path: Path) -> None:
    """It is looked at once it is open, so that what is checked is what would be written."""
    opened: list[str] = []

    def refuse(path: str, found: os.stat_result) -> None:
        opened.extend(one for one in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{one}") == path)
        assert stat.S_ISCHR(found.st_mode)
        raise CliError("refused")

    target = await target_for("/dev/full", refuse)
    with pytest.raises(CliError, match="refused"):
        await in_thread(target.open)
    assert opened
    assert not [one for one in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{one}") == "/dev/full"]


# --------------------------------------------------------------------------------------------------------------- clones


@pytest.mark.qemu
def test_a_clone_whose_name_misleads(astore: Any, folder: Path) -> None:
    """The line that a new volume gets, unless the format was said."""
    ran = astore("vol", "clone", "a.raw", "x.qcow2")
    assert ran.code == 0
    assert ran.complaint == "volume 'x.qcow2' is raw, whatever its name says: --format qcow2 makes qcow2"
    astore.good("vol", "clone", "a.raw", "y.qcow2", "--format", "raw")
    astore.good("vol-clone", "a.raw", "z.qcow2")
    astore.good("vol", "clone", "a.raw", "w.qcow2", "--format", "qcow2")


def test_the_document_of_a_clone(astore: Any, folder: Path, make_pool: Make) -> None:
    """What would be made, by all options, and refused where it would be."""
    make_pool("other")
    shown = astore.good("vol", "clone", "a.raw", "b", "--print-xml", "--format", "qcow2", "--capacity", "1G").out
    assert '<format type="qcow2"/>' in shown
    assert f'<capacity unit="bytes">{1 << 30}</capacity>' in shown
    for part in ("<key>", "<path>", "timestamps"):
        assert part not in shown
    shown = astore.good("vol", "clone", "images/web.qcow2", "b", "--print-xml").out
    assert (shown.count("<path>"), "backingStore" in shown) == (1, True)
    assert "backingStore" not in astore.good("vol", "clone", "images/web.qcow2", "other/b", "--print-xml").out
    assert "<key>" in astore.good("vol-clone", "a.raw", "b", "--print-xml").out
    for arguments in (("a.raw",), ("other/base.qcow2",), ("base.qcow2", "--to", "other"), ("b", "--capacity", "1K")):
        refused = astore("vol", "clone", "a.raw", *arguments)
        printed = astore("vol", "clone", "a.raw", *arguments, "--print-xml")
        assert (printed.code, printed.out) == (refused.code, "") == (1, "")
        assert printed.complaint == refused.complaint


# ---------------------------------------------------------------------------------------------------------- definitions


def test_the_new_definition_of_an_active_pool(
    astore: Any, make_pool: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command says when it counts, and warns of a type that does not exist."""
    folder = make_pool("images")
    same = astore.definition("images", folder)
    assert astore.good("pool", "define", same).out == f"pool 'images' defined from {same}\n"
    uuid = astore.good("pool", "list", "--uuid").out.strip()
    later = ": its next start takes it (`astore pool stop images` first)\n"
    warning = "pool 'images' cannot be started yet: 'dri' is none of libvirt's pool types, and no plugin for it is "
    warning += "installed: did you mean 'dir'?"
    odd = tmp_path / "odd.xml"
    odd.write_text(Path(same).read_text().replace("'dir'", "'dri'").replace("<target>", f"<uuid>{uuid}</uuid><target>"))
    ran = astore("pool", "define", str(odd))
    assert (ran.code, ran.out, ran.complaint) == (0, f"pool 'images' defined from {odd}{later}", warning)
    assert astore("pool-define", str(odd)).out == f"Pool images defined from {odd}\n\n"
    ran = astore("pool", "define-as", "images", "dir", "--target", str(tmp_path / "elsewhere"))
    assert (ran.out, ran.err) == (f"pool 'images' defined{later}", "")
    monkeypatch.setenv("VISUAL", "sed -i s/dir/dri/")
    ran = astore("pool", "edit", "images")
    assert (ran.code, ran.out, ran.complaint) == (0, f"pool 'images' is defined anew{later}", warning)


@pytest.mark.parametrize(
    ("type", "line"),
    [
        ("nfs", "it is none of libvirt's pool types: did you mean 'netfs'?"),
        ("glusterfs", "it is none of libvirt's pool types: did you mean 'gluster'?"),
        ("directories of mine", "it is none of libvirt's pool types: is it misspelt?"),
        ("logical", "astore has none for it: install its plugin, if there is one"),
        ("netfs", "pip install 'astore[netfs]'"),
    ],
)
def test_types_without_a_backend(type: str, line: str) -> None:
    """The advice fits the type."""
    assert explain(errors.UnknownBackendError("no backend", type=type)) == f"no backend: {line}"


# ----------------------------------------------------------------------------------------------------------------- help


def test_the_help_of_what_is_misspelt(astore: Any) -> None:
    """It suggests what the command itself suggests, and knows virsh's groups."""
    ran = astore("help", "pool-def")
    assert ran.code == 2
    assert "did you mean `pool-define`" in ran.complaint
    assert ran.complaint.endswith("see `astore --help`")
    assert "did you mean `info`?: see `astore vol --help`" in astore("help", "vol", "infoo").complaint
    assert (
        astore("help", "vol", "info", "x").complaint == "There is no command 'vol info x': see `astore vol info --help`"
    )
    assert astore.good("help", "volume").out == astore.good("help", "vol").out
    assert "define-as" in astore.good("help", "pool").out


def test_usages_of_virshs_names(astore: Any, make_pool: Make) -> None:
    """They show the words that may be left out, and errors show the name that was typed."""
    make_pool("images")
    for name, usage in (
        ("vol-create-as", "POOL NAME [CAPACITY]"),
        ("vol-delete", "VOLUME..."),
        ("vol-list", "[POOL]"),
        ("pool-start", "[POOL]..."),
    ):
        assert astore.good("help", name).out.splitlines()[0] == f"Usage: astore {name} [OPTIONS] {usage}"
    for name in ("vol-create-as", "vol create"):
        ran = astore(*name.split(), "images", "x")
        assert ran.complaint == f"say how large to make 'x': `astore {name} POOL NAME CAPACITY`"


# -------------------------------------------------------------------------------------------------------------- uploads


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://h/x", "http://h/x: what comes by http may have been changed on its way: use https, or CURL"),
        ("HTTP://h/x", "HTTP://h/x: what comes by http may have been changed on its way: use https, or CURL"),
        ("http://u:secret@h/x", "http://h/x: what comes by http may have been changed on its way: use https, or CURL"),
        ("ftp://u:secret@h/x", "ftp://h/x: only https is read: CURL"),
        ("https://u:secret@h/x", "https://h/x: astore sends no user and password: CURL"),
        ("https://u:se/cret@h/x", "https://h/x: astore sends no user and password: CURL"),
        ("file:///x/y", "file:///x/y: give the file's path instead of a URL"),
    ],
)
def test_uploads_from_other_urls(astore: Any, folder: Path, url: str, line: str) -> None:
    """They are refused with a way out, and no password is shown."""
    ran = astore("vol", "upload", "a.raw", url)
    assert ran.code == 1
    assert ran.complaint == line.replace("CURL", "`curl URL | astore vol upload VOLUME -`")


@pytest.mark.parametrize(
    "rest", ["h:8443/images/foo@1.2.qcow2", "h:8443/x?sig=a@b", "[::1]/a@b", "[::1]:80/a@b", "h?x=a@b", "h/a@b"]
)
def test_urls_without_a_user(rest: str) -> None:
    """An @ behind the server's name is no user's."""
    assert upload_sources._is_https(f"https://{rest}")


def test_a_scheme_in_capitals(astore: Any, folder: Path) -> None:
    """It is https all the same."""
    assert "Connection refused" in astore("vol", "upload", "a.raw", "HTTPS://localhost:1/x").complaint


def test_a_file_that_cannot_be_unpacked(astore: Any, folder: Path, tmp_path: Path) -> None:
    """The line says how it is written as it is."""
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"x" * 1000)[:-10])
    ran = astore("vol", "upload", "a.raw", str(tmp_path / "a.gz"))
    assert ": --no-unpack writes it as it is" in ran.complaint


# ------------------------------------------------------------------------------------------------------------ the shell


def test_several_commands_in_a_line(astore: Any, make_pool: Make) -> None:
    """As virsh reads them; the name of the program may stand in front."""
    make_pool("images")
    text = b"astore pool list --name; vol list images --name;\nvirsh pool-uuid nobody ; pool list --name; quit; pool list\n"
    ran = astore.process("shell", stdin=text)
    assert (ran.code, ran.out) == (4, "images\nbase.qcow2\nweb.qcow2\nimages\n")
    assert astore.process("shell", stdin=b"pool list --name; vol path 'x\n").code == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a b; c\n", [["a", "b"], ["c"]]),
        ('a \'b;c\' "d;\\";" e\\;f;g', [["a", "b;c", 'd;";', "e;f"], ["g"]]),
        ("a # b; c", [["a"]]),
        (" ;; astore", [[], []]),
        ("", []),
    ],
)
def test_where_a_line_is_split(line: str, words: list[list[str]]) -> None:
    """At semicolons that are neither quoted nor in a comment."""
    assert split(line) == words


def test_completion_behind_a_semicolon() -> None:
    """Completes the last command."""
    assert candidates("pool list; astore vol ", "downl") == ["download "]
    assert candidates("pool list;", "hel") == ["help "]


# --------------------------------------------------------------------------------------------------- what is not there


def test_names_that_are_misspelt(astore: Any, make_pool: Make) -> None:
    """The name that is meant, else where to look; nothing has to be refreshed, since the storage was asked."""
    folder = make_pool("images")
    for arguments, meant in (
        (("vol", "info", "WEB.qcow2"), "no active pool has a volume 'WEB.qcow2': did you mean 'web.qcow2'?"),
        (("vol", "info", "images/bas.qcow2"), "pool 'images' has no volume 'bas.qcow2': did you mean 'base.qcow2'?"),
        (
            ("vol", "info", "web", "--pool", "images"),
            "pool 'images' has no volume 'web': `astore vol list images` shows ",
        ),
        (("vol", "delete", "imags/web.qcow2"), "a volume 'imags/web.qcow2': did you mean 'images/web.qcow2'?"),
        (("vol", "path", f"{folder}/wev.qcow2"), f"did you mean '{folder}/web.qcow2'?"),
        (("vol", "path", f"{folder}/no.raw"), f"'{folder}/no.raw': `astore vol list POOL` shows"),
        (("vol", "path", "imags/wev.qcow2"), "'imags/wev.qcow2': `astore vol list POOL` shows"),
        (("vol", "path", "else"), "no active pool has a volume 'else': `astore vol list POOL` shows a pool's volumes"),
        (("pool", "info", "Images"), "there is no pool 'Images': did you mean 'images'?"),
        (("pool", "stop", "image"), "there is no pool 'image': did you mean 'images'?"),
        (("vol", "list", "other"), "there is no pool 'other': `astore pool list --all` shows those there are"),
    ):
        ran = astore(*arguments)
        assert ran.code == 3
        assert meant in ran.complaint
        assert "refresh" not in ran.complaint


def test_which_names_are_compared() -> None:
    """Those of about the same length, in any case."""
    assert closest("V0", ["v1", "v0"]) == "v0"
    assert closest("web", ["website-of-the-shop", "wet"], cutoff=0.6) == "wet"
    assert closest("web", []) is None


def test_what_must_be_refreshed_first(astore: Any, folder: Path) -> None:
    """The line names the command."""
    error = errors.StorageError("volume 'x' was replaced by another file; refresh it first", pool="a b")
    assert explain(error).endswith("first: `astore pool refresh 'a b'`")
    error = errors.StorageError("it changed meanwhile; refresh it first")
    assert explain(error).endswith("first: `astore pool refresh POOL`")


def test_a_state_folder_that_is_not_there(astore: Any, make_pool: Make, tmp_path: Path) -> None:
    """One line says so, if the folder was named; a folder that is empty is no matter."""
    missing = str(tmp_path / "none")
    ran = astore("--state-dir", missing, "pool", "list")
    assert (ran.code, ran.complaint) == (0, f"there is no state folder {missing}")
    (tmp_path / "none").mkdir(mode=0o700)
    astore.good("--state-dir", missing, "pool", "list")


def test_a_list_without_active_pools(astore: Any, make_pool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whose output goes elsewhere reads of the others; scripts, JSON and virsh's text stay as they are."""
    make_pool("images", start=False)
    for arguments in ((), ("--json",)):
        astore.good("pool", "list", *arguments)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert astore("pool", "list").complaint == "no active pools: `astore pool list --all` shows all there are (1)"
    for arguments in (
        ("pool", "list", "--json"),
        ("pool-list",),
        ("pool", "list", "--all"),
        ("pool", "list", "--name"),
    ):
        astore.good(*arguments)
