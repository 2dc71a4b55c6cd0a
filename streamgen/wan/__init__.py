"""The Wan family: published checkpoints in the same sessions as the tiny model."""
