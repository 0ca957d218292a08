"""One Gluster volume through libgfapi: connections, and the tree of files that a pool is."""
