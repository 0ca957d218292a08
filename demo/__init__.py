"""``make demo``: what ``astore demo`` shows, on all kinds of storage: folders and, as root, a private Gluster."""
