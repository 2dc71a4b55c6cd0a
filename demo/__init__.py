"""The live demo: a browser front end over `streamgen` sessions.

It imports `streamgen` only, and nothing imports it.
"""
