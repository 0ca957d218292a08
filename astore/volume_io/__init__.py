"""One open volume: reading, writing, copying, wiping, images and NBD, whatever the volume is opened on."""
