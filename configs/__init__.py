"""Configs as package data: one YAML file per runnable thing, full values, no code."""
