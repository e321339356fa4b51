"""Files inside installed packages, found without importing the packages."""

from importlib.util import find_spec
from pathlib import Path


def shipped(package: str, file: str) -> Path:
    """Return where a file of an installed package is."""
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"{package} is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / file
