"""Claims of papers as grids of small trainings: cells, seeds, equal budgets, and a table with intervals."""
