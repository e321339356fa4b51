"""What a probe or the analyzer raises on purpose; importable without torch."""


class AnalyzerError(Exception):
    """The work cannot go on: the message names the file, layer or shape, and what to do."""


class NotApplicable(Exception):
    """The subject has nothing this probe measures; the message says why."""


REFUSALS = (
    *(RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError),
    AnalyzerError,
)
"""What models and losses raise that do not take batches of some kind."""


def first_line(error: Exception) -> str:
    """Kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
