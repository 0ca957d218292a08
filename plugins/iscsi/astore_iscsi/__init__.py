"""astore-iscsi: pools of the type ``iscsi-direct``."""
