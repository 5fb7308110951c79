"""The commit protocol: the only code that writes weights. Knows nothing of training or serving."""
