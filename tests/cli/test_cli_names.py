"""virsh's names, common options, completion and the version, in this process."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shellingham

import astore as library
from astore.cli.virsh import VERBS

Make = Callable[..., Path]


def test_virsh_names_do_the_same(astore: Any, make_pool: Make, tmp_path: Path) -> None:
    """Each of virsh's names runs the command that it means, with its options."""
    folder = make_pool("images")
    xml = astore.definition("other", tmp_path / "other")
    assert "defined" in astore.good("pool-define", xml).out
    assert "built" in astore.good("pool-build", "other").out
    assert "started" in astore.good("pool-start", "other", "--build").out
    assert astore.good("pool-list", "--name").out.split() == ["images", "other"]
    bytes_of = astore.good("pool", "info", "images", "--bytes", "--virsh").out
    assert astore.good("pool-info", "images", "--bytes").out == bytes_of
    assert astore.good("pool-dumpxml", "images").out == astore.good("pool", "dumpxml", "images", "--virsh").out
    assert "refreshed" not in astore.good("pool-refresh", "images").err
    assert "marked" in astore.good("pool-autostart", "other").out
    assert "unmarked" in astore.good("pool-autostart", "--disable", "other").out
    listed = astore.good("vol", "list", "images", "--details", "--virsh").out
    assert astore.good("vol-list", "images", "--details").out == listed
    assert "10.00 GiB" in astore.good("vol-info", "web.qcow2", "--pool", "images").out
    assert astore.good("vol-path", "web.qcow2", "--pool", "images").out == f"{folder}/web.qcow2\n\n"
    for name, printed in (("vol-key", f"{folder}/web.qcow2"), ("vol-name", "web.qcow2"), ("vol-pool", "images")):
        assert astore.good(name, f"{folder}/web.qcow2").out == f"{printed}\n\n"
    assert astore.good("vol-dumpxml", "--pool", "images", "web.qcow2").out.startswith("<volume")
    assert "destroyed" in astore.good("pool-destroy", "other").out
    assert "stopped" in astore.good("pool", "destroy", "images").out
    assert "deleted" in astore.good("pool-delete", "other").out
    assert "undefined" in astore.good("pool-undefine", "other").out
    assert "created" in astore.good("pool-create", xml, "--build").out


@pytest.mark.qemu
def test_virsh_names_for_work_on_volumes(astore: Any, make_pool: Make, tmp_path: Path) -> None:
    """With virsh's order of arguments, and its options."""
    folder = make_pool("images")
    pool = ("--pool", "images")
    astore.good("vol-create-as", "images", "a.raw", "1M", "--allocation", "0", "--format", "raw")
    backed = ("--backing-vol", "base.qcow2", "--backing-vol-format", "qcow2")
    astore.good("vol-create-as", "images", "b.qcow2", "10G", "--format", "qcow2", *backed)
    xml = astore.good("vol-create-as", "images", "c.raw", "1M", "--print-xml").out
    (tmp_path / "c.xml").write_text(xml)
    astore.good("vol-create", "images", str(tmp_path / "c.xml"))
    (tmp_path / "file").write_bytes(b"data")
    astore.good("vol-upload", "a.raw", str(tmp_path / "file"), *pool, "--offset", "10", "--length", "4", "--sparse")
    astore.good("vol-download", "a.raw", str(tmp_path / "back"), *pool, "--offset", "10", "--length", "4", "--sparse")
    assert (tmp_path / "back").read_bytes() == b"data"
    astore.good("vol-clone", "a.raw", "d.raw", *pool)
    astore.good("vol-resize", "d.raw", "1M", *pool, "--allocate", "--delta")
    astore.good("vol-resize", *pool, "--shrink", "d.raw", "1M")
    astore.good("vol-wipe", "d.raw", *pool, "--algorithm", "zero")
    astore.good("vol-delete", "d.raw", *pool)
    assert sorted(path.name for path in folder.iterdir()) == ["a.raw", "b.qcow2", "base.qcow2", "c.raw", "web.qcow2"]


def test_virsh_names_are_hidden_and_have_help(astore: Any) -> None:
    """The help shows one name for each thing, but knows them all."""
    shown = astore.good("--help").out
    assert not re.findall(rf"(?m)^  ({'|'.join(VERBS)}) ", shown)
    assert "destroy" not in astore.good("pool", "--help").out.replace("(virsh: destroy", "")
    for name in VERBS:
        assert astore.good(name, "--help").out.startswith(f"Usage: astore {name} [OPTIONS]"), name
        assert astore.good("help", name).out == astore.good(name, "-h").out, name


def test_common_options_before_and_after(astore: Any, make_pool: Make, tmp_path: Path) -> None:
    """--json, --state-dir and --timeout are taken in front of the command and behind it; the last word counts."""
    make_pool()
    assert astore.good("--json", "pool", "list").json() == astore.good("pool", "list", "--json").json()
    elsewhere = str(tmp_path / "elsewhere")
    assert astore.good("--state-dir", elsewhere, "pool", "list", "--name").out == ""
    assert astore.good("--state-dir", elsewhere, "pool", "list", "--name", "--state-dir", str(astore.state_dir)).out
    assert astore.good("--timeout", "30", "pool", "refresh", "images", "--timeout", "20").out


def test_version(astore: Any) -> None:
    """--version says which it is."""
    for option in ("--version", "-V"):
        assert astore.good(option).out == f"astore {library.__version__}\n"


def test_verbose_logs_and_shows_where_errors_come_from(astore: Any, make_pool: Make) -> None:
    """The log and the traceback go to stderr, before the one line; the logger is left as it was."""
    make_pool()
    before = logging.getLogger("astore").level, list(logging.getLogger("astore").handlers)
    ran = astore("pool", "info", "nobody", "--verbose")
    assert ran.code == 3
    assert ran.complaint.startswith("there is no pool 'nobody'")
    ran = astore("vol", "create", "images", "base.qcow2", "1M", "--verbose")
    assert ran.code == 1
    assert "Traceback" in ran.err
    ran = astore("--verbose", "pool", "stop", "images")
    assert (ran.code, ran.out) == (0, "pool 'images' stopped\n")
    assert "DEBUG astore" in astore("-v", "pool", "start", "images").err
    assert (logging.getLogger("astore").level, logging.getLogger("astore").handlers) == before


def test_a_state_folder_that_cannot_be(astore: Any, tmp_path: Path) -> None:
    """A file in its place is named in one line."""
    (tmp_path / "file").write_text("")
    ran = astore("pool", "define", astore.definition("a", tmp_path / "a"), "--state-dir", str(tmp_path / "file"))
    assert ran.code == 1
    assert str(tmp_path / "file") in ran.complaint


# -------------------------------------------------------------------------------------------------------- completion


@pytest.fixture
def complete(astore: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What bash is told for a command line whose last word is being typed."""

    def words(*line: str) -> list[str]:
        monkeypatch.setenv("_ASTORE_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(("astore", *line)))
        monkeypatch.setenv("COMP_CWORD", str(len(line)))
        ran = astore()
        monkeypatch.delenv("_ASTORE_COMPLETE")
        assert ran.code == 0, ran
        return [line.partition(",")[2] for line in ran.out.split()]

    return words


def test_completion_of_commands(complete: Callable[..., list[str]]) -> None:
    """Groups and verbs; virsh's names are offered to those who begin one."""
    assert "pool" in complete("po")
    assert complete("pool", "star") == ["start"]
    assert "pool-start" not in complete("pool")
    assert complete("pool-sta") == ["pool-start"]
    assert "--json" in complete("-")


def test_completion_of_pools_and_volumes(
    complete: Callable[..., list[str]], make_pool: Make, astore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names come from the state folder, wherever it was said to be; those that a shell must not see are left out."""
    make_pool("images")
    make_pool("isos", start=False)
    (astore.state_dir / "pools" / "evil\x1b[31m.xml").write_text("")
    assert complete("pool", "start", "i") == ["isos"]
    assert complete("pool", "stop", "i") == ["images"]
    assert complete("pool-destroy", "i") == ["images"]
    assert complete("pool-start", "--pool", "i") == ["isos"]
    assert complete("pool", "info", "i") == ["images", "isos"]
    assert complete("vol-info", "web.qcow2", "i") == ["images", "isos"]
    assert complete("pool", "start", "e") == []
    assert complete("vol", "info", "w") == ["web.qcow2"]
    assert complete("vol", "info", "--pool", "images", "b") == ["base.qcow2"]
    assert complete("vol", "info", "--pool", "../x", "b") in ([], ["base.qcow2"])
    assert complete("pool", "list", "--type", "n") == ["netfs"]
    monkeypatch.delenv("ASTORE_STATE_DIR")
    assert complete("--state-dir", str(astore.state_dir), "pool", "info", "im") == ["images"]
    assert complete("pool", "info", "--state-dir", str(astore.state_dir), "im") == ["images"]


def test_completion_of_volume_work(complete: Callable[..., list[str]], make_pool: Make) -> None:
    """Volumes, pools, formats and algorithms, each where it is asked for."""
    make_pool("images")
    make_pool("isos")
    assert complete("vol", "delete", "web.qcow2", "b") == ["base.qcow2"]
    assert complete("vol", "upload", "w") == ["web.qcow2"]
    assert complete("vol", "create", "im") == ["images"]
    assert complete("vol", "clone", "web.qcow2", "new", "--to", "i") == ["images", "isos"]
    assert complete("vol", "create", "images", "new", "--format", "qc") == ["qcow", "qcow2"]
    assert complete("vol", "wipe", "web.qcow2", "--algorithm", "pf") == ["pfitzner7", "pfitzner33"]


def test_completion_without_a_state_folder(
    complete: Callable[..., list[str]], make_pool: Make, astore: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing there is nothing to offer; and the user's own folder is looked into by default."""
    assert complete("pool", "info", "--state-dir", str(tmp_path / "none"), "x") == []
    make_pool("images")
    monkeypatch.delenv("ASTORE_STATE_DIR")
    monkeypatch.setattr("astore.store.local_files.default_state_dir", lambda: astore.state_dir)
    assert complete("pool", "info", "im") == ["images"]


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", ".local/share/bash-completion/completions/astore"),
        ("zsh", ".zfunc/_astore"),
        ("fish", ".config/fish/completions/astore.fish"),
    ],
)
def test_completion_is_shown_and_installed(
    astore: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str, place: str
) -> None:
    """--show-completion prints the script for the shell one is in, --install-completion puts it where that looks for it."""
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    monkeypatch.setenv("HOME", str(tmp_path))
    script = astore.good("--show-completion").out
    for other in ("bash", "zsh", "fish"):
        assert f"_ASTORE_COMPLETE={other}_complete" in astore.good("--show-completion", other).out
    assert f"_ASTORE_COMPLETE={shell}_complete" in script
    for _ in range(2):
        assert place in astore.good("--install-completion").out
    assert (tmp_path / place).read_text().strip() == script.strip()
    if shell == "zsh":
        assert (tmp_path / ".zshrc").read_text() == "fpath+=~/.zfunc; autoload -Uz compinit; compinit\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("pool undefin", "`undefine`"),
        ("pool-lst", "`pool-list`"),
        ("vol uplaod x y", "`upload`"),
        ("wach", "`watch`"),
        ("vol-check images/a", "`vol check`?"),
        ("pool-stop images", "`pool stop`?"),
        ("snapshots", "`vol snapshots`?"),
    ],
)
def test_a_command_that_is_misspelt(astore: Any, words: str, meant: str) -> None:
    """The line names the commands that may be meant, ours and virsh's."""
    ran = astore(*words.split())
    assert ran.code == 2
    assert f": did you mean {meant}" in ran.complaint
    assert astore("nonsense").complaint.startswith("There is no command 'nonsense'")


def test_completion_for_a_shell_that_nobody_knows(astore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says for which there is one."""

    def unknown() -> tuple[str, str]:
        raise shellingham.ShellDetectionFailure

    monkeypatch.setattr("shellingham.detect_shell", unknown)
    ran = astore("--show-completion")
    assert ran.code == 2
    assert ran.complaint.startswith("there is no completion for this program, only for bash, zsh, fish")
