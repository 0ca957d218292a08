"""A host's part in a fleet: its pools, and telling of their changes."""
