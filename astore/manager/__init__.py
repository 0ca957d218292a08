"""The Manager: looks up pools, and keeps their definitions in a store."""

from astore.manager.manager import Manager
from astore.manager.statistics import Statistics

__all__ = ["Manager", "Statistics"]
