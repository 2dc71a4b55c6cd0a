"""How a chunk is computed: sizes, noise, samplers, guidance, decoding, and the runners that do it."""
