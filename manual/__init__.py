"""The manual: the site, its pictures, and the man pages, made from docs/, docstrings and the command itself."""
