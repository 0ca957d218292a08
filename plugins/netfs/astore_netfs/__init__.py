"""astore-netfs."""
