"""Programs: they are run without a shell, bounded, and inherit no descriptor that they are not given."""

from astore.commands.runner import LaneCommandRunner, prepare_programs

__all__ = ["LaneCommandRunner", "prepare_programs"]
