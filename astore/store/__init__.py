"""Where definitions, autostart marks, runs and last snapshots are kept."""
