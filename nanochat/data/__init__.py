"""Text, chat and evaluation sets: fetched, cleaned, split, verified; knows nothing of models."""
