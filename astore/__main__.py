"""Run the command with ``python -m astore``."""

from astore.cli import main

if __name__ == "__main__":
    main()
