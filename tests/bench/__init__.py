"""Measurements of every bar beside its peer; `make bench` runs them and writes `results.json`."""
