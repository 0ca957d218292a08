"""``python -m demo``: run the demonstration on folders, a private Gluster and, if asked for, a private Ceph."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from astore.cli.app import run
from astore.cli.demo import run_demo
from astore.cli.demo_command import images_option, pools_option
from astore.cli.demo_storage import DemoStorage
from astore.cli.session import Settings, reported, verbose_option
from demo.servers import fill, make_everything


@click.command("demo", params=[verbose_option()])
@click.option("--no-gluster", is_flag=True, help="Leave the private Gluster out.")
@click.option("--ceph", is_flag=True, help="Start a private Ceph, too.")
@pools_option
@images_option
def demo(no_gluster: bool, ceph: bool, pools: int, images: int) -> None:
    """Show astore at work on real storage; leave nothing behind."""
    with reported(click.get_current_context().ensure_object(Settings)):

        def make(storage: DemoStorage) -> None:
            make_everything(storage, pools, with_gluster=not no_gluster, with_ceph=ceph)

        run_demo(make, images=images, fill=fill)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; print an error in one line. :param argv: None: the process's. :returns: the exit code."""
    return run(sys.argv[1:] if argv is None else argv, demo)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # libgfapi's clean-up at the end of a process takes ten seconds
