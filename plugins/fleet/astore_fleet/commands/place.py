"""Where the fleet of a command is: its options, before the command or after ``astore fleet``, and commands on a Fleet."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import click
import msgspec
from click.core import ParameterSource

from astore.cli.command_line import Command, CommonOption, Option
from astore.cli.exits import CliError, Exit
from astore.cli.interruptions import interruptions_raise, run
from astore.cli.output import Answer
from astore.cli.progress import Ticker
from astore.cli.session import Settings, common_options, logs, present, reported
from astore_fleet.access import Access
from astore_fleet.client.fleet import Fleet
from astore_fleet.client.fleet_pool import FleetPool

PLACE = "astore.fleet"
"""Where a click context keeps the :class:`Place`, in ``meta``."""

_OPTIONS = (
    ("url", "URL", "nats://HOST:4222, or tls://HOST:4222; several servers are separated by commas."),
    ("name", "NAME", "The fleet's name, since several share a server (default: default)."),
    ("user", "USER", "A user; the password is read from ASTORE_FLEET_PASSWORD."),
    ("credentials", "FILE", "A user's credentials, as nsc writes them."),
    ("nkey", "FILE", "The seed of an nkey."),
    ("inbox", "PREFIX", "What the subjects of answers begin with (default: _INBOX.USER)."),
    ("ca", "FILE", "TLS: the certificates of the authorities to trust."),
    ("cert", "FILE", "TLS: this client's certificate."),
    ("key", "FILE", "TLS: the key of the certificate."),
)
"""The options: a field of :class:`Place`, what stands for the value, and the help."""


class Place(msgspec.Struct):
    """Where the fleet is, and how to be let in. The fields are the options; files are named."""

    url: str | None = None
    name: str | None = None
    host: str | None = None
    user: str | None = None
    credentials: str | None = None
    nkey: str | None = None
    inbox: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    async def connect(self) -> Fleet:
        """Connect. :raises CliError: no URL was given, or a file cannot be read. StoreError: it is not possible."""
        if not self.url:
            raise CliError("which fleet? Give --url nats://HOST:4222, or set ASTORE_FLEET_URL", Exit.USAGE)
        return await Fleet.connect(self.url, self.name or "default", host=self.host, access=self._access())

    def _access(self) -> Access:
        try:
            seed = None
            if self.nkey is not None:
                with open(self.nkey) as file:
                    seed = file.read().strip()
            return Access(
                user=self.user,
                password=os.environ.get("ASTORE_FLEET_PASSWORD"),
                token=os.environ.get("ASTORE_FLEET_TOKEN"),
                credentials=self.credentials,
                nkey_seed=seed,
                inbox_prefix=self.inbox,
                tls=self._tls(),
            )
        except OSError as error:  # ssl.SSLError is one
            raise CliError(f"{error.filename or self.ca or self.cert}: {error.strerror or error}") from error

    def _tls(self) -> Any:
        if self.ca is None and self.cert is None:
            return None
        import ssl

        made = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            made.load_cert_chain(self.cert, self.key)
        return made


def place_options(before: str, instead: Callable[[click.Context], None] | None = None) -> list[click.Parameter]:
    """Make the options.

    :param before: what their names begin with: nothing, or ``fleet``, which alone is the URL's then.
    :param instead: called with the context if the URL was given on the command line.
    """

    def keep(context: click.Context, option: click.Parameter, value: str | None) -> None:
        assert option.name is not None
        field = option.name.removeprefix(before).removeprefix("_") or "url"
        place = context.meta.setdefault(PLACE, Place())
        said = context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
        if value is not None and (said or getattr(place, field) is None):
            setattr(place, field, value)
        if field == "url" and said and instead is not None:
            instead(context)

    kind: type[Option] = CommonOption if before else Option
    found: list[click.Parameter] = []
    for field, metavar, help in _OPTIONS:
        name = before if before and field == "url" else f"{before}-{field}".lstrip("-")
        variable = {"url": None if before else "ASTORE_FLEET_URL", "name": "ASTORE_FLEET"}
        found.append(
            kind(
                [f"--{name}"],
                envvar=variable.get(field, f"ASTORE_FLEET_{field.upper()}"),
                show_envvar=not before,
                metavar=metavar,
                help=f"Work on a fleet: {help}" if before and field == "url" else help,
                expose_value=False,
                callback=keep,
            )
        )
    return found


class Opened(NamedTuple):
    """The fleet, the settings and the progress display of a running command."""

    fleet: Fleet
    settings: Settings
    ticker: Ticker

    def pool(self, name: str) -> FleetPool:
        """Return a pool by its name or UUID. :raises PoolNotFoundError: there is none."""
        by_uuid = [one.name for one in self.fleet.pools() if one.uuid == name.lower() and one.name != name]
        return self.fleet.pool(by_uuid[0] if by_uuid else name)


Work = Callable[..., Coroutine[Any, Any, Answer]]


def fleet_command(name: str, *, signed: bool = False) -> Callable[[Work], click.Command]:
    """Turn a coroutine function whose first parameter is an :class:`Opened` into a command with the common options.

    :param signed: an argument may be a negative number.
    """

    def made(work: Work) -> click.Command:
        def entry(**arguments: Any) -> None:
            context = click.get_current_context()
            settings, place = context.ensure_object(Settings), context.meta.get(PLACE) or Place()

            async def act() -> Answer:
                async with await place.connect() as fleet:
                    return await work(Opened(fleet, settings, ticker), **arguments)

            with logs(settings.verbose), reported(settings), interruptions_raise():
                with Ticker() as ticker:
                    answer = run(act)
                present(answer, msgspec.structs.replace(settings, virsh=False, quiet=False))

        parameters: list[click.Parameter] = getattr(work, "__click_params__", [])
        return Command(
            name,
            callback=entry,
            params=[*reversed(parameters), *common_options()],
            help=work.__doc__,
            context_settings={"ignore_unknown_options": True} if signed else {},
        )

    return made


def assigned(labels: tuple[str, ...]) -> dict[str, str]:
    """Return labels that were given as ``NAME=VALUE``."""
    return dict(label.partition("=")[::2] for label in labels)
