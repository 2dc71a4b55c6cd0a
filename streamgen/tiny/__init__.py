"""The tiny family: trained by this repository, shipped in it, real time on a CPU."""
