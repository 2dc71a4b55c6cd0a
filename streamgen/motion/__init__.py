"""Motion of a stream: tracks, the files and clips they come from, and named gestures."""
