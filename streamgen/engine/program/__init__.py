"""A chunk as a program: fused networks over static buffers, compiled, and captured."""
