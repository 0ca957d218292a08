"""What hosts share: definitions, runs and snapshots."""
