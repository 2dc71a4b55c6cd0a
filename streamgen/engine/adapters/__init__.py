"""Runners over networks that have adapters beside their weights."""
