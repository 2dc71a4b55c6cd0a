"""The interactive exam: steered streams of any system, marked against ground truth."""
