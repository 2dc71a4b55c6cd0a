"""Training: procedural scenes, stages and the trainer that turns them into weights."""
