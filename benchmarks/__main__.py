"""Measure: ``python -m benchmarks [TOPIC ...] [--rounds N] [--large]``."""

import argparse
import logging
import platform
from collections.abc import Callable, Mapping

import torch

from benchmarks import convolution, fleet, footprint, recurrent, width
from benchmarks.timing import Row, write

TOPICS: Mapping[str, Callable[[int, bool], list[Row]]] = {
    "convolution": convolution.rows,
    "fleet": fleet.rows,
    "footprint": footprint.rows,
    "recurrent": recurrent.rows,
    "width": width.rows,
}
"""``rows(rounds, large)`` of each topic."""


def main() -> None:
    """Run the topics and write their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("topics", nargs="*", default=[*TOPICS], metavar="TOPIC")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each function (7)")
    parser.add_argument("--large", action="store_true", help="the thousand-layer network as well")
    options = parser.parse_args()
    unknown = set(options.topics) - set(TOPICS)
    if unknown:
        parser.error(f"unknown topic {', '.join(unknown)}: known are {', '.join(TOPICS)}")
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for topic in options.topics:
        about = (
            f"{options.rounds} rounds, torch {torch.__version__}, {platform.machine()}, "
            f"{'CUDA' if torch.cuda.is_available() else 'CPU'}, one thread, seed 0. Ratios are to "
            "the first row of each case, run in the same round."
        )
        rows = TOPICS[topic](options.rounds, options.large)
        write(topic, rows, about)
        for row in rows:
            cells = zip(row.cells(), _WIDTHS, strict=True)
            print("  ".join(f"{cell:{width}}" for cell, width in cells))


_WIDTHS = (32, 26, 6, 6, 6, 6, 6, 0)

if __name__ == "__main__":
    main()
