"""What a probe or the analyzer raises on purpose; importable without torch."""


class AnalyzerError(Exception):
    """The work cannot go on: the message names the file, layer or shape, and what to do."""


class NotApplicable(Exception):
    """The subject has nothing this probe measures; the message says why."""
