"""The repository's own images as the test cluster runs them."""
