"""Check a definition's mount options: some are refused, some must be allowed, and some are secrets.

mount(8) is case-sensitive: ``SUID`` means nothing to it. Here names are compared without case, blanks and quotes, so
that nothing depends on how a helper reads them.
"""

from __future__ import annotations

import re

import msgspec

from astore.errors import CommandError, DefinitionError
from astore.model import PoolDef, SecretName
from astore.model.definitions import shown_option
from astore.names import check_allowed_option, check_mount_option, check_path

LONGEST_PASSWORD = 512
"""The longest password, and the longest user name with domain, in bytes: mount.cifs.c's MOUNT_PASSWD_SIZE."""

_OTHERWISE = frozenset(
    {
        *("bind", "rbind", "move", "remount", "loop", "offset", "sizelimit", "encryption"),
        *("shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable"),
        *("source", "unc", "target", "path"),  # CIFS: another share than the definition's
    }
)
"""Options with which mount(8) or a helper does something other than mount the source."""

_WRITING = frozenset({"log-file", "dump-fuse", "volfile", "pid-file"})
"""Options with which mount.glusterfs(8) writes a local file, or reads one instead of the server's volume file."""

_RUNNING = frozenset({"helper", "uhelper"})
"""Options with which umount(8) runs another program: /sbin/umount.NAME."""

_UNDOES = "it undoes nodev, nosuid or noexec, or may"
_PASSES = "it is passed on unchecked, and may undo nodev, nosuid and noexec"
_LABELS = "it decides which programs of this machine may use the mount"
_HARMFUL = {
    **dict.fromkeys(("suid", "dev", "exec", "defaults"), _UNDOES),
    **dict.fromkeys(("user", "users", "owner", "group"), "it lets other users mount and unmount"),
    **dict.fromkeys(("fuse-mountopts", "xlator-option"), _PASSES),
    **dict.fromkeys(("context", "fscontext", "defcontext", "rootcontext"), _LABELS),
}
"""Options that must be allowed, and why."""

_USER = frozenset({"user", "username"})
_PASSWORD = frozenset({"password", "pass"})
_PASSWORD2 = frozenset({"password2", "pass2"})
_DOMAIN = frozenset({"domain", "dom", "workgroup"})
_FILE = frozenset({"credentials", "cred"})
_IDENTIFYING = frozenset({"username", "sec", "guest"}) | _PASSWORD | _PASSWORD2 | _FILE
_SECRET = re.compile(r"pass(?:word|wd)?2?")


class Credentials(msgspec.Struct, frozen=True):
    """The credentials for a CIFS server; no program's argument shows them."""

    password: str
    password2: str | None = None
    username: str | None = None
    domain: str | None = None

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r}, domain={self.domain!r})"

    def text(self) -> bytes:
        """Return the text for mount.cifs(8)'s option ``credentials=``.

        The second password, for servers that rotate passwords, comes first: mount.cifs before 7.3 takes it for the
        first one, and then replaces it by the next line.
        """
        fields = {
            "username": self.username,
            "domain": self.domain,
            "password2": self.password2,
            "password": self.password,
        }
        return "".join(f"{name}={value}\n" for name, value in fields.items() if value is not None).encode()

    def clean(self, error: CommandError) -> None:
        """Remove the passwords from an error's output. (mount.cifs prints none.)"""
        for secret in (self.password, self.password2):
            if secret is not None and len(secret) >= 4:  # a shorter one occurs in any text
                error.args = tuple(
                    word.replace(secret, "***") if isinstance(word, str) else word for word in error.args
                )
                error.stderr = error.stderr.replace(secret, "***")


def option_name(option: str) -> str:
    """Return an option's name, normalised."""
    return option.partition("=")[0].strip().strip("\"'").strip().casefold()


def check_options(definition: PoolDef, kind: str) -> None:
    """Check that a definition's mount options are harmless, or explicitly allowed.

    :param kind: the source's format.
    :raises DefinitionError: naming the option, without any password in it.
    """
    allowed = {option_name(check_allowed_option(name)) for name in definition.allowed_options}
    for option in definition.mount_options:
        check_mount_option(option)
        name, shown = option_name(option), shown_option(option)
        if name in _OTHERWISE or name.startswith(("x-mount.", "verity.")):
            raise _refused(f"the option {shown!r} would make mount do something else")
        if name in _WRITING:
            raise _refused(f"the option {shown!r} names a file of this machine")
        if name in _RUNNING:
            raise _refused(f"the option {shown!r} would run another program")
        if name in _HARMFUL and name not in allowed and not _logs_in(option, kind):
            raise _refused(
                f"the mount option {shown!r} has to be allowed, since {_HARMFUL[name]}: by <astore:allow name={name!r}/> in "
                f"the definition, by allowed_options=({name!r},), or on the command line by --allow-option {name}"
            )
    split_credentials(definition, kind)


def split_credentials(
    definition: PoolDef, kind: str, secret: bytes | None = None
) -> tuple[tuple[str, ...], Credentials | None]:
    """Split the mount options into those that everybody may see, and the credentials, if any.

    :param secret: the value of the definition's secret; None if it is not known yet.
    :raises DefinitionError: a password does not belong here, is given twice, or is too long.
    """
    login = _Login(kind)
    for option in definition.mount_options:
        login.read(option)
    if definition.mount_secret is not None:
        login.read_secret(definition.mount_secret, secret)
    return login.split()


class _Login:
    """The mount options of a definition, read one by one: the logins, and the options that everybody may see."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._seen: list[str] = []
        self._beside: list[str] = []  # goes to the file along with a password, but is not secret
        self._found: dict[str, str] = {}

    def read(self, option: str) -> None:
        """Read an option. :raises DefinitionError: see :func:`split_credentials`."""
        name, value = option_name(option), option.partition("=")[2]
        secret = _SECRET.fullmatch(name) is not None or (name in _USER and "%" in value)
        if secret and self._kind != "cifs":
            raise _refused(f"a netfs source of format {self._kind!r} takes no password: {shown_option(option)!r}")
        if name in _PASSWORD:
            self._take("password", value)
        elif name in _PASSWORD2:
            self._take("password2", value)
        elif secret and name not in _USER:
            raise _refused(f"CIFS has no option {name!r}: use password=")
        elif _logs_in(option, self._kind):
            user, percent, password = value.partition("%")
            self._take("username", user)
            if percent:
                self._take("password", password)
            self._beside.append(f"username={user}")
            self._seen.append(self._beside[-1])
        elif name in _DOMAIN and self._kind == "cifs":
            self._take("domain", value)
            self._beside.append(option)
            self._seen.append(option)
        else:
            if name in _FILE and self._kind == "cifs":
                self._take("credentials file", check_path(value, what="credentials file", element="option"))
            self._seen.append(option)

    def read_secret(self, name: SecretName, value: bytes | None) -> None:
        """Read the secret that is the password, after the options. :raises DefinitionError: it cannot be the password."""
        if self._kind != "cifs":
            raise _wrong_secret(f"a netfs source of format {self._kind!r} takes no password, and no secret")
        if not self._found.get("username"):
            raise _wrong_secret("a secret is the password of a user: give the mount option username=, too")
        if not self._found.keys().isdisjoint({"password", "credentials file"}):
            raise _wrong_secret("a password and a secret are given: one of them")
        password = (value or b"").decode(errors="replace")
        if password.encode() != (value or b""):
            raise _wrong_secret(f"the {name} is no UTF-8 text, as a password has to be")
        if not set(password).isdisjoint("\n\r\0"):  # each line of the file with the password is another field
            raise _wrong_secret(f"the {name} has more than one line, or a NUL")
        if len(value or b"") > LONGEST_PASSWORD:
            raise _wrong_secret(f"the {name} is longer than {LONGEST_PASSWORD} bytes")
        self._found["password"] = password

    def _take(self, field: str, value: str) -> None:
        if field in self._found:
            raise _refused(f"the {field} is given twice among the mount options")
        if len(value.encode()) > LONGEST_PASSWORD:
            raise _refused(f"the {field} among the mount options is longer than {LONGEST_PASSWORD} bytes")
        self._found[field] = value

    def split(self) -> tuple[tuple[str, ...], Credentials | None]:
        """Return the result. :raises DefinitionError: see :func:`split_credentials`."""
        found = self._found
        if "password" not in found:
            if "password2" in found:
                raise _refused("a password2 belongs beside a password")
            return tuple(self._seen), None
        if "credentials file" in found:
            raise _refused("a password and a file of credentials are given: one of them")
        credentials = Credentials(
            found["password"], found.get("password2"), found.get("username") or None, found.get("domain")
        )
        return tuple(option for option in self._seen if option not in self._beside), credentials


def is_anonymous(definition: PoolDef, kind: str) -> bool:
    """Return whether to mount a CIFS source as a guest: no option says how to log in."""
    return not any(option_name(option) in _IDENTIFYING or _logs_in(option, kind) for option in definition.mount_options)


def _logs_in(option: str, kind: str) -> bool:
    """Return whether an option logs a user in: CIFS's ``user`` with a value. Elsewhere it means who may mount."""
    return kind == "cifs" and option_name(option) in _USER and bool(option.partition("=")[2])


def _wrong_secret(message: str) -> DefinitionError:
    return DefinitionError(message, element="secret")


def _refused(message: str) -> DefinitionError:
    return DefinitionError(message, element="option")
