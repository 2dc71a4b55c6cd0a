"""Rewards with a gradient, exact in the procedural world: what pictures show, how and where objects go."""
