"""Work of a chunk, ceilings of a device, and the share of them that is reached."""
