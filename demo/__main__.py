"""``python -m demo``: run the demonstration on folders and on a private Gluster."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from astore.cli.demo import run_demo
from astore.cli.exits import CliError, Exit, code_of, explain
from astore.cli.output import complain, drop_stdout
from astore.errors import AstoreError
from demo.servers import fill, make_everything


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; print an error in one line. :param argv: None: the process's. :returns: the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.pools < 1 or options.images < 3:
        parser.error("it needs at least one pool, and three images in each")
    try:
        run_demo(
            lambda storage: make_everything(storage, options.pools, with_gluster=options.gluster),
            images=options.images,
            fill=fill,
        )
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()
        return Exit.BROKEN_PIPE
    except (CliError, AstoreError, OSError) as error:
        complain(explain(error))
        return code_of(error)
    return Exit.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="demo", description="Show astore at work on real storage; leave nothing behind."
    )
    parser.add_argument("--no-gluster", dest="gluster", action="store_false", help="leave the private Gluster out")
    parser.add_argument("--pools", type=int, default=10, metavar="N", help="how many dir pools (%(default)s)")
    parser.add_argument("--images", type=int, default=100, metavar="N", help="how many images in each (%(default)s)")
    return parser


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # libgfapi's clean-up at the end of a process takes ten seconds
