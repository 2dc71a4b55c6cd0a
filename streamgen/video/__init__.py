"""Pictures in and out: clips read and written, and what else is made of them."""
