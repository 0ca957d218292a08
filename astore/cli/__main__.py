"""``python -m astore.cli``."""

from astore.cli import main

if __name__ == "__main__":
    main()
