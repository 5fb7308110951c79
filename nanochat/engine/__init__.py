"""Batched generation: requests of any length join and leave at every step.

Knows nothing of HTTP; the model comes in as a parameter.
"""
