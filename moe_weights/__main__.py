"""`python -m moe_weights`: the same as the console entry `moe-weights`."""

from __future__ import annotations

import sys

from moe_weights.cli import main

if __name__ == "__main__":
    sys.exit(main())
