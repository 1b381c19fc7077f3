"""Fixtures, and the folder of the scripts on the path, as python puts it there."""

import sys
from pathlib import Path

from run_folders import make_run, make_seeds

__all__ = ["make_run", "make_seeds"]

sys.path.append(str(Path(__file__).parents[2] / "experiments"))
