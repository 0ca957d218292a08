"""Mounting: what is mounted where, with which options, and the session of a pool on a mount."""
