"""``python -m astore.cli``."""

from astore.cli import main

main()
