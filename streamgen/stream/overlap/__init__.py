"""Streams whose chunks overlap."""
