"""astore-rbd: pools of the type ``rbd``."""
