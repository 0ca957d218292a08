"""astore-gluster: pools of the type ``gluster``."""
