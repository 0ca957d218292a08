"""A pool: its record, its life, the work on its volumes, and the handles that programs hold."""
