"""Reading image headers."""
