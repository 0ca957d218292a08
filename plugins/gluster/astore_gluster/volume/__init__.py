"""One Gluster volume through libgfapi: connections, and the tree of a pool's files."""
