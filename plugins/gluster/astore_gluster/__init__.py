"""astore-gluster."""
