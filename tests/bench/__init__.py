"""The scripts of bench/ can be imported by the tests in here."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "bench"))
