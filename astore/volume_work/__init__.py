"""Work on volumes over any tree of files, written once: create, copy, upload, download, resize, wipe, rename, delete.

A backend implements :class:`~astore.trees.writable.WritableTree` and returns a
:class:`~astore.trees.session.WritableTreeSession`; all of it is then done for it.
"""
