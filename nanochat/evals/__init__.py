"""How good a model is: bits per byte, multiple choice, generated answers, and what the figures mean."""
