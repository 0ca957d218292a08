"""Mount options: which are refused, which have to be allowed, who logs in, and that no password is seen by anybody."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import astore
from astore.backend import Context
from astore.errors import AstoreError, CommandError, DefinitionError, LaneTimeoutError
from astore.model import PoolDef, SecretName
from astore.testing.secrets import GivenSecrets
from astore_netfs import NetfsBackend, mount_argv
from astore_netfs.mounting import credentials
from astore_netfs.mounting.credentials import CredentialsFile
from astore_netfs.mounting.options import split_credentials

Make = Callable[..., PoolDef]
ALWAYS = "nodev,nosuid,noexec"
SECRET = "s3cr%t=Pass word"
SHOUTED = "0th3r&S3cret"


def refuse(definition: PoolDef, match: str) -> str:
    """The words in which a definition is refused, by check and by mount_argv alike."""
    words = []
    for call in (mount_argv, NetfsBackend().check):
        with pytest.raises(DefinitionError, match=match) as caught:
            call(definition)
        assert caught.value.element in ("option", "secret")
        words.append(str(caught.value))
    assert len(set(words)) == 1
    return words[0]


# ---------------------------------------------------------------------------------- options that have to be allowed

HARMFUL = ["suid", "dev", "exec", "user", "users", "owner", "group", "defaults"]
HARMFUL += ["context=system_u:object_r:bin_t:s0", "fuse-mountopts=suid", "xlator-option=a.b=c"]


@pytest.mark.parametrize("kind", ["auto", "nfs", "glusterfs", "cifs"])
@pytest.mark.parametrize("option", HARMFUL)
def test_harmful_options_have_to_be_allowed(netfs_definition: Make, kind: str, option: str) -> None:
    """Refused in words that say how; taken where the definition allows them, by name."""
    definition = netfs_definition(kind, options=("ro", option))
    name = option.partition("=")[0]
    words = refuse(definition, "has to be allowed")
    assert f"--allow-option {name}" in words and f"allowed_options=('{name}',)" in words
    refuse(msgspec.structs.replace(definition, allowed_options=("ro", "another")), "has to be allowed")
    allowed = msgspec.structs.replace(definition, allowed_options=(name,))
    assert NetfsBackend().check(allowed).allowed_options == (name,)
    assert mount_argv(allowed)[2].endswith(f",ro,{option}")


@pytest.mark.parametrize(
    "option", ["SUID", "Exec", "suid=1", "exec=recursive", '"dev"', "'suid'", "DEFAULTS", "user=joe"]
)
def test_harmful_options_by_any_spelling(netfs_definition: Make, option: str) -> None:
    """Case, quotes and values do not hide an option."""
    refuse(netfs_definition("nfs", options=(option,)), "has to be allowed")


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ("log-file=/etc/cron.d/x", "names a file"),
        ("LOG-FILE=/etc/cron.d/x", "names a file"),
        ("dump-fuse=/etc/passwd", "names a file"),
        ("volfile=/tmp/evil", "names a file"),
        ("helper=evil", "another program"),
        ("uhelper=evil", "another program"),
        ("X-mount.mkdir", "something else"),
        ("x-mount.owner=nobody", "something else"),
        ("X-mount.subdir=x", "something else"),
        ("Remount", "something else"),
        ("bind", "something else"),
        ("loop=/dev/loop0", "something else"),
        ("offset=512", "something else"),
        ("unc=//other/share", "something else"),
    ],
)
def test_options_that_nothing_allows(netfs_definition: Make, option: str, match: str) -> None:
    """What writes a local file, runs a program, or mounts something else is refused, whatever is allowed."""
    allowed = (option.partition("=")[0], "log-file", "helper", "bind")
    for kind in ("nfs", "glusterfs", "cifs"):
        definition = netfs_definition(kind, options=(option,))
        refuse(msgspec.structs.replace(definition, allowed_options=allowed), match)


def test_harmless_options_are_taken(netfs_definition: Make) -> None:
    """Options that only look like harmful ones need no word."""
    options = ("user_xattr", "nosuid", "noexec", "nodev", "nouser", "context_x=1", "x-systemd.automount", "devices")
    assert mount_argv(netfs_definition("nfs", options=options))[2] == f"{ALWAYS},{','.join(options)}"


def test_the_word_in_a_document(netfs_definition: Make) -> None:
    """``astore:allow`` is the same as allowed_options, and survives a round trip; libvirt's own part is as it was."""
    definition = msgspec.structs.replace(netfs_definition(options=("suid",)), allowed_options=("suid", "exec"))
    document = definition.to_xml()
    assert '<astore:allow name="suid"/>' in document
    assert '<fs:option name="suid"/>' in document
    assert PoolDef.from_xml(document) == definition
    for bad in ("suid=x", "a,b", "", "-o"):
        with pytest.raises(DefinitionError, match="allow"):
            PoolDef.from_xml(document.replace('allow name="suid"', f'allow name="{bad}"'))


# ------------------------------------------------------------------------------------------------- who logs in


@pytest.mark.parametrize(
    "option", ["username=joe", "user=joe", "credentials=/etc/c", "cred=/etc/c", "sec=krb5", "guest"]
)
def test_guest_is_given_only_where_nobody_logs_in(netfs_definition: Make, option: str) -> None:
    """An option that says who logs in, or how, stands alone."""
    options = mount_argv(netfs_definition("cifs", directory="share", options=("ro", option)))[2].split(",")
    assert options == [*ALWAYS.split(","), "ro", option.replace("user=", "username=")]
    assert "guest" in mount_argv(netfs_definition("cifs", directory="share", options=("ro",)))[2].split(",")


def test_user_of_cifs_is_who_logs_in(netfs_definition: Make) -> None:
    """With a value it is a name, which nobody has to allow; without one it lets others mount."""
    mount_argv(netfs_definition("cifs", options=("user=joe",)))
    for option in ("user", "user=", "users"):
        refuse(netfs_definition("cifs", options=(option,)), "has to be allowed")


PASSWORDS = [
    (f"password={SECRET}",),
    (f"pass={SECRET}",),
    (f"PassWord={SECRET}",),
    (f"username=joe%{SECRET}",),
    (f"user=joe%{SECRET}",),
    (f"user=%{SECRET}",),
    ("username=joe", f"password={SECRET}", "domain=D"),
    (f"password={SECRET}", f"password2={SHOUTED}"),
    (f"pass2={SHOUTED}", f"pass={SECRET}", "workgroup=W"),
]


@pytest.mark.parametrize("options", PASSWORDS, ids=range(len(PASSWORDS)))
def test_a_password_is_no_argument(netfs_definition: Make, options: tuple[str, ...]) -> None:
    """Password, user and domain are for the file of credentials; the rest is an argument as ever, and guest is none."""
    definition = NetfsBackend().check(netfs_definition("cifs", directory="share", options=("ro", *options, "vers=3.0")))
    assert mount_argv(definition)[2] == f"{ALWAYS},ro,vers=3.0"
    assert mount_argv(definition, "/run/c")[2] == f"{ALWAYS},ro,vers=3.0,credentials=/run/c"
    seen, found = split_credentials(definition, "cifs")
    assert seen == ("ro", "vers=3.0")
    assert found is not None
    lines = found.text().decode().splitlines()
    assert lines[-1] == f"password={SECRET}"
    assert (f"password2={SHOUTED}" in lines) == (len(options) > 1 and SHOUTED in str(options))
    assert ("username=joe" in lines) == ("joe" in str(options))
    for text in (repr(found), repr(definition), str(definition), repr([definition])):
        assert SECRET not in text and SHOUTED not in text
    assert PoolDef.from_xml(definition.to_xml()) == definition


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("nfs", ("password=", SECRET), "takes no password"),
        ("glusterfs", ("pass=", SHOUTED), "takes no password"),
        ("auto", ("username=joe%", SECRET), "takes no password"),
        ("cifs", ("password=a,", SECRET), "has a comma.*credentials="),
        ("cifs", ("user=joe%a,", SECRET), "has a comma.*credentials="),
        ("cifs", ("ro,password=", SECRET), "has a comma"),
        ("cifs", ("password=a\n", SECRET), "control characters"),
        ("cifs", ("password=a\udc80", SECRET), "not valid Unicode"),
        ("cifs", ("-opassword=", SECRET), "begins with '-'"),
        ("cifs", ("passwd=", SECRET), "no option 'passwd'"),
        ("cifs", ("password2=", SECRET), "belongs beside a password"),
        ("cifs", ("password=", SECRET * 40), "longer than"),
    ],
)
def test_passwords_that_are_refused(netfs_definition: Make, kind: str, options: tuple[str, str], match: str) -> None:
    """In words without the password, by the XML rules as well."""
    definition = netfs_definition(kind, options=("".join(options),))
    words = [refuse(definition, match)]
    for call in (definition.to_xml, lambda: PoolDef.from_xml(definition.to_xml())):
        try:
            call()
        except DefinitionError as error:
            words.append(str(error))
    assert not any(options[1] in text or SECRET in text for text in words), words


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ((f"password={SECRET}", "pass=x"), "given twice"),
        ((f"user=joe%{SECRET}", "pass=x"), "given twice"),
        ((f"password={SECRET}", "credentials=/c"), "one of them"),
        (("credentials=relative",), "not absolute"),
        (("credentials=/a/../b",), "has a '..'"),
    ],
)
def test_logins_that_contradict(netfs_definition: Make, options: tuple[str, ...], match: str) -> None:
    """Two answers to one question are refused."""
    assert SECRET not in refuse(netfs_definition("cifs", options=options), match)


# ------------------------------------------------------------------------------- a mount command that tells all it sees

TELLTALE = """\
#!/bin/sh
printf '%s\\n' "$@" > {folder}/argv
tr '\\0' '\\n' < /proc/$$/environ > {folder}/environ
file=$(printf '%s' "$2" | sed 's/.*credentials=//; s/,.*//')
stat -c '%a %u' "$file" "$(dirname "$file")" > {folder}/modes
cp "$file" {folder}/copy
echo "$file" > {folder}/file
{then}
"""


@pytest.fixture
def telltale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a ``mount`` on the PATH that writes down what it is given, and then does what it is told."""

    def make(then: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "mount").write_text(TELLTALE.format(folder=folder, then=then))
        (folder / "mount").chmod(0o755)
        return folder

    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return make


@pytest.fixture(params=["run", "tmp"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files of credentials are made: in /run (a stand-in), or, where nobody may write there, in the temporary folder."""
    made = tmp_path / "place"
    made.mkdir()
    if request.param == "run":
        monkeypatch.setattr(credentials, "PLACE", str(made))
    else:
        monkeypatch.setattr(credentials, "PLACE", str(tmp_path / "absent"))
        monkeypatch.setattr("tempfile.tempdir", str(made))
    return made


@pytest.fixture
def by_secret(netfs_definition: Make, tmp_path: Path) -> PoolDef:
    """A CIFS pool whose password is a secret."""
    (tmp_path / "target").mkdir()
    options = ("username=joe", "domain=D", "vers=3.0")
    definition = netfs_definition("cifs", directory="share", target=tmp_path / "target", options=options)
    return msgspec.structs.replace(definition, mount_secret=SecretName("cifs", usage="files"))


async def test_a_password_that_is_a_secret(
    by_secret: PoolDef, context: Context, telltale: Callable[[str], Path], place: Path, no_leaks: object
) -> None:
    """It is asked for by each mount, and only the file has it; it may have a comma, which a mount option may not."""
    folder = telltale('cat "$file" >&2; exit 32')
    for value in (f"{SECRET},", f"{SHOUTED}é"):
        given = GivenSecrets({"files": value.encode()})
        with pytest.raises(CommandError) as caught:
            await NetfsBackend().open(by_secret, msgspec.structs.replace(context, secrets=given))
        assert given.asked == [by_secret.mount_secret]
        lines = (folder / "copy").read_text().splitlines()
        assert lines == ["username=joe", "domain=D", f"password={value}"]
        seen = "".join((folder / name).read_text() for name in ("argv", "environ"))
        assert value not in f"{seen}{caught.value!r}{caught.value.stderr}{caught.value.__dict__}" and "joe" not in seen
        assert (folder / "modes").read_text() == f"600 {os.geteuid()}\n700 {os.geteuid()}\n"
        assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (None, "secret of usage cifs 'files' does not exist.*astore secret set cifs files"),
        (b"a\nusername=root", "more than one line"),
        (b"a\0b", "NUL"),
        (b"a\xffb", "no UTF-8 text"),
        (b"a" * 513, "longer than 512 bytes"),
    ],
)
async def test_secrets_that_are_no_password(
    by_secret: PoolDef, context: Context, telltale: Callable[[str], Path], value: bytes | None, match: str
) -> None:
    """mount is not run, and the value is not shown."""
    folder = telltale("exit 0")
    given = GivenSecrets({} if value is None else {"files": value})
    with pytest.raises(AstoreError, match=match) as caught:
        await NetfsBackend().open(by_secret, msgspec.structs.replace(context, secrets=given))
    assert not (folder / "argv").exists() and "root" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("nfs", (), "takes no password, and no secret"),
        ("cifs", ("vers=3.0",), "the password of a user"),
        ("cifs", ("username=joe", f"password={SECRET}"), "a password and a secret"),
        ("cifs", ("username=joe", "credentials=/c"), "a password and a secret"),
    ],
)
def test_secrets_that_contradict(netfs_definition: Make, kind: str, options: tuple[str, ...], match: str) -> None:
    """A secret is the one password of a user."""
    definition = netfs_definition(kind, directory="/share", options=options)
    assert SECRET not in refuse(
        msgspec.structs.replace(definition, mount_secret=SecretName("cifs", usage="files")), match
    )


def test_a_secret_in_a_document(by_secret: PoolDef) -> None:
    """By usage or by uuid; it survives a round trip, and libvirt's own part is as it was."""
    definition = NetfsBackend().check(by_secret)
    document = definition.to_xml()
    assert '<astore:secret usage="files"/>' in document
    assert PoolDef.from_xml(document) == definition
    uuid = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"
    by_uuid = document.replace('usage="files"', f'uuid="{uuid.upper()}"')
    assert PoolDef.from_xml(by_uuid).mount_secret == SecretName("cifs", uuid)
    for bad in ("", f'usage="x" uuid="{uuid}"', 'uuid="x"', 'usage="files"/><astore:secret usage="files"'):
        with pytest.raises(DefinitionError):
            PoolDef.from_xml(document.replace('usage="files"', bad))
    assert "usage='files'" in repr(definition)


@pytest.fixture
def secretive(netfs_definition: Make, tmp_path: Path) -> PoolDef:
    """A CIFS pool with a password."""
    (tmp_path / "target").mkdir()
    options = ("username=joe", f"password={SECRET}", f"password2={SHOUTED}", "domain=D", "vers=3.0")
    return netfs_definition("cifs", directory="share", target=tmp_path / "target", options=options)


def check_what_it_saw(folder: Path) -> None:
    """The command got a file that is its own, with all of it, and nothing of it otherwise."""
    for name in ("argv", "environ"):
        seen = (folder / name).read_text()
        assert SECRET not in seen and SHOUTED not in seen
    assert (folder / "modes").read_text() == f"600 {os.geteuid()}\n700 {os.geteuid()}\n"
    lines = (folder / "copy").read_text().splitlines()
    assert lines == ["username=joe", "domain=D", f"password2={SHOUTED}", f"password={SECRET}"]
    assert not os.path.exists((folder / "file").read_text().strip())


async def test_a_mount_that_fails(
    secretive: PoolDef, context: Context, telltale: Callable[[str], Path], place: Path, no_leaks: object
) -> None:
    """The file is gone, and what the command says is told without the passwords, even where it says them."""
    folder = telltale('echo "mount error(13)"; cat "$file" >&2; exit 32')
    with pytest.raises(CommandError, match=r"username=joe .*password=\*\*\*") as caught:
        await NetfsBackend().open(secretive, context)
    check_what_it_saw(folder)
    error = caught.value
    assert error.returncode == 32
    assert list(place.iterdir()) == []
    for text in (str(error), repr(error), repr(error.argv), error.stderr, repr(error.__dict__)):
        assert SECRET not in text and SHOUTED not in text


async def test_a_mount_that_mounts_nothing(
    secretive: PoolDef, context: Context, telltale: Callable[[str], Path], place: Path
) -> None:
    """The file is gone when the command has ended well."""
    folder = telltale("exit 0")
    with pytest.raises(astore.StorageError, match="nothing is mounted there"):
        await NetfsBackend().open(secretive, context)
    check_what_it_saw(folder)
    assert list(place.iterdir()) == []


async def test_a_mount_that_hangs(
    secretive: PoolDef, make_context: Callable[..., Context], telltale: Callable[[str], Path], place: Path
) -> None:
    """At the deadline the file goes, with the command."""
    folder = telltale("exec sleep 600")
    for timeout in (1.0, 8.0, 64.0):  # more if it was killed before it had looked
        with pytest.raises(LaneTimeoutError) as caught:
            await NetfsBackend().open(secretive, make_context(timeout=timeout))
        assert SECRET not in str(caught.value) and SHOUTED not in str(caught.value)
        if (folder / "file").exists() and (folder / "file").read_text():
            break
    check_what_it_saw(folder)
    assert list(place.iterdir()) == []


async def test_a_mount_that_is_cancelled(
    secretive: PoolDef, context: Context, telltale: Callable[[str], Path], place: Path, no_leaks: object
) -> None:
    """However early or late: no file is left."""
    folder = telltale("exec sleep 600")
    for rounds in range(40):
        task = asyncio.create_task(NetfsBackend().open(secretive, context))
        for _ in range(rounds):
            await asyncio.sleep(0 if rounds < 30 else 0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (folder / "file").unlink(missing_ok=True)
    task = asyncio.create_task(NetfsBackend().open(secretive, context))
    while not (folder / "file").exists() or not (folder / "file").read_text():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    check_what_it_saw(folder)
    deadline = asyncio.get_running_loop().time() + 120
    while list(place.iterdir()) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.01)  # one that was made for nobody is removed by its thread
    assert list(place.iterdir()) == []


def test_what_the_killed_leave_is_removed(place: Path) -> None:
    """The next file's maker removes what nobody has locked any more; what is in use stays."""
    dead = CredentialsFile(b"dead")
    os.close(dead._folder._fd)  # as if its process had ended
    alive = CredentialsFile(b"alive")
    another = CredentialsFile(b"another")
    assert not os.path.exists(dead.path)
    assert Path(alive.path).read_bytes() == b"alive"
    for file in (alive, another, alive):
        file.remove()
    assert list(place.iterdir()) == []


def test_a_folder_that_a_mount_option_cannot_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comma in the folder for temporary files would end the option."""
    monkeypatch.setattr(credentials, "PLACE", str(tmp_path / "absent"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a,b"))
    with pytest.raises(astore.StorageError, match="comma"):
        CredentialsFile(b"")


async def test_a_password_is_shown_nowhere(
    secretive: PoolDef,
    telltale: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Not in events, errors, logs, information nor the command's output: only the definition has it, in files of mode 0600."""
    telltale('cat "$file" >&2; exit 32')
    caplog.set_level("DEBUG")
    texts: list[str] = []
    async with astore.Manager(tmp_path / "state") as manager:
        pool = await manager.define(secretive)
        for call in (pool.start, lambda: pool.start(build=True), manager.start_all):
            try:
                texts.append(repr(await call()))
            except AstoreError as error:
                texts += [str(error), repr(error), repr(error.__dict__), repr(error.__cause__), repr(error.__context__)]
        texts += [repr(pool), repr(pool.info), repr(pool.error), repr(pool.definition), repr(manager.pools())]
        async with manager.events(since=0) as events:
            async for event in events:
                texts.append(repr(event) + msgspec.json.encode(event).decode())
                if event.seq == manager.statistics().events.last_seq:
                    break
        assert PoolDef.from_xml(pool.to_xml(inactive=True)).mount_options == secretive.mount_options
    for arguments in (
        ["--json", "pool", "list", "--all"],
        ["--json", "pool", "info", "pool"],
        ["--json", "pool", "start", "pool"],
        ["--verbose", "pool", "start", "pool"],
    ):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "astore.cli", "--state-dir", str(tmp_path / "state"), *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        texts.append((await process.communicate())[0].decode())
        assert "start" not in arguments or "username=joe" in texts[-1], "the mount command was run, and said something"
    texts += [caplog.text, *capfd.readouterr()]
    for text in texts:
        assert SECRET not in text and SHOUTED not in text
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert any(SECRET in path.read_text() for path in files if path.suffix == ".xml")
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


async def test_the_word_on_the_command_line(netfs_definition: Make, tmp_path: Path) -> None:
    """``pool define --allow-option suid`` is the word, and is kept in the definition."""
    file = tmp_path / "pool.xml"
    file.write_text(netfs_definition("nfs", options=("suid",)).to_xml())

    async def define(*more: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "astore.cli", "--state-dir", str(tmp_path / "state"), "pool", "define", *more, str(file),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out = (await process.communicate())[0].decode()
        return process.returncode, out

    code, out = await define()
    assert code == 1 and "--allow-option suid" in out
    code, out = await define("--allow-option", "suid")
    assert code == 0, out
    async with astore.Manager(tmp_path / "state") as manager:
        assert manager.pool("pool").definition.allowed_options == ("suid",)
