"""The Manager: what it knows of pools, and how their definitions are kept."""

from astore.manager.manager import Manager, Statistics

__all__ = ["Manager", "Statistics"]
