"""Run `moe-weights build-tables` from a checkout, installed or not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from moe_weights.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["build-tables", *sys.argv[1:]]))
