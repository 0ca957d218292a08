"""The types that libvirt's documents name. Nothing is imported, so that help and completion take no time."""

POOL_TYPES = (
    "dir",
    "fs",
    "netfs",
    "logical",
    "disk",
    "iscsi",
    "iscsi-direct",
    "scsi",
    "mpath",
    "rbd",
    "sheepdog",
    "gluster",
    "zfs",
    "vstorage",
)
"""libvirt 9.0's pool types."""

EXTRAS = {"gluster": "gluster", "iscsi-direct": "iscsi", "netfs": "netfs", "rbd": "rbd"}
"""The extras of astore's distribution that bring a backend, by the types of pools."""

AUTH_TYPES = ("chap", "ceph")
"""The types of a login."""

USAGES = ("none", "volume", "ceph", "iscsi", "tls", "vtpm", "cifs")
"""libvirt 9.0's usage types of secrets in its order, and ``cifs``, which is astore's own."""

BASE64_USAGES = ("ceph",)
"""The usage types whose values people have as base64: a key as ``ceph auth get-key`` prints it."""
