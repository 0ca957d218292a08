"""`make bench`: astore, libvirt and the C limit side by side."""
