"""What words say of which object: captions with what they tell, heads that read it, probes for it."""
