"""A real Kubernetes for the tests: built from pinned modules, started and torn down by this package."""
