"""The platform around `nanochat`: command line, plans, executors; imports no torch."""
