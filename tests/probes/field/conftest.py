"""Make the modules beside the tests importable: ``zoo`` and ``oracle``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
