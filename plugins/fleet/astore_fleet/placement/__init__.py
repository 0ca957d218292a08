"""Which hosts are there, and which host looks after which pool."""
