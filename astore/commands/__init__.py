"""Programs: they are run without a shell, bounded, and inherit no descriptor that they are not given."""

from astore.commands.command import Command
from astore.commands.piped import PipedProgram
from astore.commands.runner import LaneCommandRunner, prepare_programs

__all__ = ["Command", "LaneCommandRunner", "PipedProgram", "prepare_programs"]
