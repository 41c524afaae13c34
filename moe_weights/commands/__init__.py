"""The story of each script."""
