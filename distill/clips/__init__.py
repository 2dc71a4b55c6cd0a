"""One's own clips and prompts as the training stages take them, from a folder of videos or a list."""
