"""Networks: video tokenizer, causal diffusion transformer, text encoder and their layers."""
