"""The values of secrets, kept outside of definitions: in the state folder, or by systemd.

:class:`~astore.secrets.files.SecretFiles` defines secrets and keeps their values in a state folder. Its methods block.
:class:`~astore.secrets.kept.KeptSecrets` is what a Manager uses unless it was given another
:class:`~astore.backend.Secrets`: systemd's credentials, then the state folder.
"""

from typing import TYPE_CHECKING

from astore.deferred import lazily

if TYPE_CHECKING:
    from astore.secrets.credentials import SystemdCredentials, credential_name
    from astore.secrets.files import KnownSecret, SecretFiles
    from astore.secrets.kept import KeptSecrets
    from astore.secrets.values import LARGEST_VALUE, value_from_base64, value_from_text

__all__ = [
    "LARGEST_VALUE",
    "KeptSecrets",
    "KnownSecret",
    "SecretFiles",
    "SystemdCredentials",
    "credential_name",
    "value_from_base64",
    "value_from_text",
]

__getattr__, __dir__ = lazily(__name__, __all__, ("values", "credentials", "files", "kept"))
