"""From names and shapes to a plan."""
