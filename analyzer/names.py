"""Names a user may have misspelled."""

from collections.abc import Iterable
from difflib import get_close_matches

from probes.errors import AnalyzerError


def known(given: Iterable[str], names: Iterable[str], kind: str) -> None:
    """Raise on the first unknown name, with the nearest known one.

    Raises
    ------
    AnalyzerError
        One of ``given`` is not among ``names``.
    """
    names = list(names)
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names) or 'none'}"
            raise AnalyzerError(f"unknown {kind} {name!r}: {hint}")
