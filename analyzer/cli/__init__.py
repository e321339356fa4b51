"""The command line: thin, and the only place that prints.

Everything heavy is imported inside the commands, so that ``--help`` answers at once.
"""

import sys

from analyzer.cli import audits, fleet, records, reference
from analyzer.cli.application import app
from probes.errors import AnalyzerError

__all__ = ["app", "audits", "fleet", "main", "records", "reference"]

FAILED, INTERRUPTED = 2, 130
"""Exit codes: the command could not run; Ctrl-C."""


def main() -> None:
    """Run the command line; every expected failure is one line and exit code 2."""
    try:
        app()
    except AnalyzerError as error:
        print(f"analyzer: {error}", file=sys.stderr)
        raise SystemExit(FAILED) from None
    except KeyboardInterrupt:
        print("analyzer: interrupted; finished files are kept", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
