"""``python -m astore``: the command."""

from astore.cli import main

if __name__ == "__main__":
    main()
