"""One matrix and its numbers."""
