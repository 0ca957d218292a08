"""The command ``astore``. Needs the extra ``cli`` (click and rich); without it, the command says so in one line."""

from astore.cli.entry import hold_standard_streams, main

__all__ = ["hold_standard_streams", "main"]
