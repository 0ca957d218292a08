"""The command `astore`."""
