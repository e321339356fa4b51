"""Let the modules beside the tests be imported."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
