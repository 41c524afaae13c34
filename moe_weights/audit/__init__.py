"""What a run says about itself in `logs/`."""
