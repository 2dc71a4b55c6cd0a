"""Live input: where frames come from, which of them a chunk takes, and what they are as latents."""
