"""What tables hold, how they are computed, written and read back."""
