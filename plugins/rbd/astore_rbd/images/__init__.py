"""The images of a Ceph pool: their headers, what is listed, read and written."""
