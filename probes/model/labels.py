"""Names of modules and of their calls: the k-th call of a module after its first is ``name#k``."""

from collections.abc import Container

WHOLE = "(model)"
"""Label of a model that is one single layer."""


def label_of(name: str, call: int) -> str:
    """Label a call of a module, counted from 1."""
    return name if call == 1 else f"{name}#{call}"


def module_of(label: str, names: Container[str]) -> str:
    """Name the module of a call; ``names`` are those of all modules, which may have a # too."""
    return label if label in names else label.rpartition("#")[0]
