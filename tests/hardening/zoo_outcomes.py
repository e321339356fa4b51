"""Write down what every probe makes of every small network.

    python tests/hardening/zoo_outcomes.py

writes ``zoo_outcomes.json``, which the tests hold every audit to. Read the difference.
"""

import json
from pathlib import Path

import torch
from whole_zoo import ZOO, audited, made, shortened

OUTCOMES = Path(__file__).parent / "zoo_outcomes.json"


def main() -> None:
    torch.set_num_threads(1)
    found = {name: shortened(audited(made(name))) for name in ZOO}
    OUTCOMES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
