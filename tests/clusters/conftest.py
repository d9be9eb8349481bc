"""Lets the cluster tests import their helper ``node`` and the integration tests' ``program``."""

import sys
from pathlib import Path

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent / "integration")]
