"""What a machine with a GPU is checked for in one go: `python -m streamgen.check`, `scripts/gpu_check.sh`."""
