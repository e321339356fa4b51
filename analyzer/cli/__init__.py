"""The command line: thin, and the only place that prints.

Everything heavy is imported inside the commands, so that ``--help`` answers at once.
"""

import signal
import sys
from typing import Any

from analyzer.cli import audits, fleet, records, reference
from analyzer.cli.application import app
from probes.errors import AnalyzerError

__all__ = ["app", "audits", "fleet", "main", "records", "reference"]

FAILED, INTERRUPTED, STOPPED = 2, 130, 143
"""Exit codes: the command could not run; Ctrl-C; a request to end, as a scheduler sends it."""

SAID = {INTERRUPTED: "interrupted", STOPPED: "stopped"}


def main() -> None:
    """Run the command line; every expected failure is one line and exit code 2."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except AnalyzerError as error:
        print(f"analyzer: {error}", file=sys.stderr)
        raise SystemExit(FAILED) from None
    except KeyboardInterrupt:
        _leave(INTERRUPTED)
    except SystemExit as ended:
        if ended.code not in SAID:
            raise
        # Typer has made this of Ctrl-C, without a word.
        _leave(int(ended.code or 0))
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(*_: Any) -> None:
    """End as after Ctrl-C, so that temporary files are removed."""
    raise SystemExit(STOPPED)


def _leave(code: int) -> None:
    """Say that the work was cut short."""
    print(f"analyzer: {SAID[code]}; finished files are kept", file=sys.stderr)
    raise SystemExit(code) from None
