"""Kubernetes: pure builders of objects, and the client that sends and follows them."""
