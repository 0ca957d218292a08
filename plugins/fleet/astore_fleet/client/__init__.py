"""A fleet, seen and used from anywhere."""
