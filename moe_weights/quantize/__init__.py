"""One matrix under one scheme and its error."""
