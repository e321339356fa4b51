import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.text import (
    ABSENT,
    coverage,
    interval,
    number,
    percent,
    plural,
    quantity,
    safe,
    safe_tree,
    sentence,
    shorten,
)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 3, "0"),
        (140.0, 3, "140"),
        (116485.0, 3, "116\u202f485"),
        (1234.0, 3, "1234"),
        (12345.6, 3, "12\u202f346"),
        (0.02, 3, "0.02"),
        (3.982, 2, "4.0"),
        (0.14999, 3, "0.150"),
        (9.996, 3, "10.0"),
        (-0.5, 3, "\u22120.5"),
        (1.234e-5, 3, "1.23\u00b710\u207b\u2075"),
        (1e-300, 3, "10\u207b\u00b3\u2070\u2070"),
        (-1e9, 3, "\u221210\u2079"),
        (3.1e-7, 2, "3.1\u00b710\u207b\u2077"),
        (float("inf"), 3, "\u221e"),
        (float("-inf"), 3, "\u2212\u221e"),
        (float("nan"), 3, ABSENT),
    ],
)
def test_number(value: float, digits: int, text: str) -> None:
    assert number(value, digits) == text


@given(st.floats(-1e300, 1e300))
def test_number_reads_back_within_its_digits(value: float) -> None:
    text = number(value).replace("\u202f", "").replace("\u2212", "-")
    raised = dict(
        zip(
            "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b",
            "0123456789-",
            strict=True,
        )
    )
    mantissa, _, power = text.rpartition("10") if any(c in raised for c in text) else (text, "", "")
    sign = {"": 1.0, "-": -1.0}.get(mantissa) or float(mantissa.rstrip("\u00b7"))
    read = float(f"{sign}e{''.join(raised[c] for c in power)}") if power else float(text)
    assert math.isclose(read, value, rel_tol=6e-3, abs_tol=5e-324)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.0, "layers", "1\u202flayer"),
        (2.5, "decade", "2.5\u202fdecades"),
        (0.3, "1", "0.3"),
        (0.3, "loss / state", "0.3\u202floss / state"),
        (7.0, "input position", "7\u202finput positions"),
        (float("nan"), "timesteps", ABSENT),
    ],
)
def test_quantity(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_plural_leaves_units_alone_that_are_not_counted() -> None:
    assert plural("loss", 3) == "loss"


def test_interval() -> None:
    assert interval(0.94, 2.25) == "[0.94, 2.25]"
    assert interval(float("nan"), float("nan")) == ""


def test_percent() -> None:
    assert percent(0.0123) == "1.2\u202f%"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layer4.1.conv2", "layer4.1.conv2"),
        ("\u03c3\u2265\u0416", "\u03c3\u2265\u0416"),
        ("a\tb\n", "a\\tb\\n"),
        ("\x07", "\\x07"),
        ("\u202eevil", "\\u202eevil"),
        ("\u05d0", "\\u05d0"),
        ("\u65e5", "\\u65e5"),
        ("\U0001f3f3", "\\U0001f3f3"),
        ("\ud800", "\\ud800"),
    ],
)
def test_safe(text: str, shown: str) -> None:
    assert safe(text) == shown


@given(st.text())
def test_safe_leaves_only_what_fonts_show_and_is_stable(text: str) -> None:
    shown = safe(text)
    assert safe(shown) == shown
    assert all(ord(character) in coverage() for character in shown)
    assert not any(
        unicodedata.bidirectional(character) in ("R", "AL", "RLO") for character in shown
    )


def test_safe_tree_reaches_every_string() -> None:
    assert safe_tree({"a": ["\x00", ("\x01", 2)], "b": None}) == {
        "a": ["\\x00", ["\\x01", 2]],
        "b": None,
    }


def test_shorten_keeps_both_ends() -> None:
    assert shorten("layer1.0.downsample.conv2.weight", 20) == "layer1.0.\u2026nv2.weight"
    assert shorten("conv1", 20) == "conv1"
    assert shorten(" ", 20) == "(unnamed)"


@given(st.text(min_size=1), st.integers(4, 40))
def test_shorten_never_exceeds_its_length(text: str, length: int) -> None:
    assert len(shorten(text, max(length, 9))) <= max(length, 9)


def test_sentence() -> None:
    assert sentence("the loss rises by 5 %") == "The loss rises by 5\u202f%."
    assert sentence("None.") == "None."
    assert sentence("shrinks by 1.9e+08, not 1e-300 (x1.9e+08)") == (
        "Shrinks by 1.9\u00b710\u2078, not 10\u207b\u00b3\u2070\u2070 (x1.9e+08)."
    )
    assert sentence(" ") == ""
