"""Chunks that overlap: passes of several of them in one forward."""
