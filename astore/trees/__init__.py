"""Pools that are folders of files: the contract of their backends, and everything that is done over it."""
