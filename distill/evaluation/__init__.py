"""Evaluation: streams are rendered and judged by their frames alone (`python -m distill.evaluate`)."""
