"""What runs while an image is built: install from the lock, slim, and list what is inside."""
