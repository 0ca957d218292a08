"""Stores: they keep definitions, autostart marks, runs and last snapshots."""
