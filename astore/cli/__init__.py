"""The command ``astore``. It needs the extra ``cli`` (click and rich) and says so in one line if that is missing."""

from astore.cli.entry import hold_standard_streams, main

__all__ = ["hold_standard_streams", "main"]
