"""A target in use: its connection on the event loop, its units, and the open volumes."""
