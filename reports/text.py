"""Text of the report: strings nobody vouches for, numbers, units."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from fontTools.ttLib import TTFont

FONTS = Path(__file__).parent / "fonts"
DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

THIN = "\u202f"
"""Narrow no-break space: between a number and its unit, and in long numbers."""

MINUS, TIMES, DOT, DASH = "\u2212", "\u00d7", "\u00b7", "\u2013"
UNNAMED = "(unnamed)"
ABSENT = DASH
"""What stands where nothing was measured."""

_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b"
_SUPERSCRIPT = str.maketrans("0123456789-", _RAISED)
_EXPONENT = re.compile(r"(?<![\w.])(\d(?:\.\d+)?)e([+-]\d{2,3})(?!\w)")
_UNSAFE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_RIGHT_TO_LEFT = ("R", "AL", "AN")
_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_COUNTED = ("timestep", "step", "layer", "decade", "sample", "position", "unit", "lag", "pixel")


@cache
def coverage() -> frozenset[int]:
    """Return the code points that every cut of the report's fonts can show.

    Typst does not fall back from a bold cut to the regular one, so the intersection counts.
    """

    def points(path: Path) -> set[int]:
        with TTFont(path, lazy=True) as font:
            return set(font.getBestCmap())

    inter = [points(path) for path in sorted(FONTS.glob("Inter-*.ttf"))]
    cuts = ("", "-Bold", "-Oblique", "-BoldOblique")
    dejavu = [points(DEJAVU / f"DejaVuSans{cut}.ttf") for cut in cuts]
    return frozenset(set.intersection(*inter) | set.intersection(*dejavu))


def safe(text: str) -> str:
    r"""Escape what fonts cannot show or what could mislead the reader.

    Parameters
    ----------
    text : str
        From a checkpoint, a file name, an exception: anything.

    Returns
    -------
    str
        The same text; control, invisible, right-to-left and uncovered characters are written as
        ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``.
    """
    return "".join(character if _shown(character) else _escape(character) for character in text)


def _shown(character: str) -> bool:
    """Say whether a character can be printed as it is."""
    return (
        ord(character) in coverage()
        and unicodedata.category(character) not in _UNSAFE
        and unicodedata.bidirectional(character) not in _RIGHT_TO_LEFT
    )


def _escape(character: str) -> str:
    """Write a character as its code."""
    code = ord(character)
    if character in _ESCAPES:
        return _ESCAPES[character]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def safe_tree(node: Any) -> Any:
    """Apply :func:`safe` to every string value of a JSON-like tree (keys are ours)."""
    if isinstance(node, str):
        return safe(node)
    if isinstance(node, Mapping):
        return {key: safe_tree(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [safe_tree(value) for value in node]
    return node


def shorten(name: str, length: int = 22) -> str:
    """Cut the middle out of a name, whose ends tell the most, and make it printable."""
    name = safe(name) if name.strip() else UNNAMED
    if len(name) <= length:
        return name
    head = length // 2 - 1
    return name[:head] + "\u2026" + name[-(length - head - 1) :]


def number(value: float, digits: int = 3) -> str:
    """Write a number with ``digits`` significant digits, powers of ten as such.

    >>> number(0.00001234)
    '1.23\u00b710\u207b\u2075'
    """
    if math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "\u221e" if value > 0 else MINUS + "\u221e"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return _plain(value, digits)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = _trim(mantissa) if float(mantissa).is_integer() else mantissa
    if mantissa in ("1", "-1"):
        return mantissa.replace("-", MINUS)[:-1] + power_of_ten(int(exponent))
    return mantissa.replace("-", MINUS) + DOT + power_of_ten(int(exponent))


def power_of_ten(exponent: int) -> str:
    """Write a power of ten with a real exponent."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def _plain(value: float, digits: int) -> str:
    """Write a number of ordinary size without an exponent."""
    # Rounding first: 9.996 has one digit more before the point than it seems.
    rounded = float(f"{value:.{digits - 1}e}")
    if float(value).is_integer() or abs(value) >= 10**digits:
        grouped = f"{value:,.0f}"
    else:
        decimals = max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)
        grouped = f"{rounded:.{decimals}f}"
        # Zeros tell how precise a rounded number is; an exact one, such as a limit, needs none.
        grouped = _trim(grouped) if rounded == value else grouped
    return grouped.replace(",", THIN if abs(value) >= 10_000 else "").replace("-", MINUS)


def _trim(text: str) -> str:
    """Drop zeros after the decimal point."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """Write a number with its unit; a ratio ("1") and an absent number have none."""
    text = number(value, digits)
    if unit in ("", "1") or text == ABSENT:
        return text
    return text + THIN + plural(unit, value)


def plural(unit: str, value: float) -> str:
    """Write the unit of ``value`` things."""
    one = unit.removesuffix("s")
    if one.rsplit(" ", 1)[-1] not in _COUNTED or "/" in unit:
        return unit
    return one if value == 1 else one + "s"


def interval(low: float, high: float, digits: int = 3) -> str:
    """Write an interval, empty where there is none."""
    if math.isnan(low) and math.isnan(high):
        return ""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def percent(share: float, digits: int = 2) -> str:
    """Write a share in percent."""
    return quantity(100 * share, "%", digits)


def factor(ratio: float) -> str:
    """Write how many times larger one number is than another."""
    return number(ratio) if math.isnan(ratio) else number(ratio) + TIMES


def count(value: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number(value)} {noun if value == 1 else noun + 's'}"


def listed(parts: Sequence[str]) -> str:
    """Join words as a person would: "a, b and c"."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def tied(text: str) -> str:
    """Keep percent signs with their numbers, and write exponents as powers of ten."""
    return _EXPONENT.sub(_powered, text.replace(" %", THIN + "%"))


def _powered(found: re.Match[str]) -> str:
    """Write 1.9e+08 as a power of ten."""
    power = power_of_ten(int(found[2]))
    return power if found[1] == "1" else found[1] + DOT + power


def sentence(text: str) -> str:
    """Start with a capital and end with a full stop, where the text is not empty."""
    text = tied(text.strip())
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")
