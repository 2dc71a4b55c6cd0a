"""One stream on several devices, each with a process of its own."""
