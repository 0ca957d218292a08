"""``make demo``: run ``astore demo`` on folders and, as root, on a private Gluster."""
