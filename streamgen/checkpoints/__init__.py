"""Checkpoints on disk: our directories, and files of others."""
