"""What jobs change in their streams."""
