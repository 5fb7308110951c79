"""The model and everything that trains, evaluates and serves it; knows nothing of Kubernetes."""
