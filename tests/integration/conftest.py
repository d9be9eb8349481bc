"""Lets the integration tests import their helper ``program``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
