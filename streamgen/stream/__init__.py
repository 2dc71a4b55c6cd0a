"""One live stream: its state, what changes it, and the step from one state to the next."""
