"""Spans at their limits: spacing, periods, causes and the borders of a tensor."""

from dataclasses import replace

import numpy as np
import pytest

from probes.field.intervals import (
    Span,
    Taps,
    accumulate,
    aligned,
    as_list,
    compressed,
    contract,
    drop,
    empty,
    everything,
    insert,
    seed,
    slide,
    spacing,
    subsampled,
    union,
)


def lows(span: Span) -> list[float]:
    found: list[float] = span.low.ravel().tolist()
    return found


def highs(span: Span) -> list[float]:
    found: list[float] = span.high.ravel().tolist()
    return found


ROW = seed((1, 5), 1)
THREE = Taps(np.arange(5) - 1 + np.arange(3)[:, None])


def test_a_union_has_the_widest_spacing_the_shortest_path_and_the_common_period():
    one = replace(ROW, jump=2.0, minimal=5.0, period=4)
    two = replace(ROW, jump=-3.0, minimal=4.0, period=6)
    irregular = replace(ROW, jump=np.nan, minimal=9.0)
    both = union([one, irregular, two])
    assert (both.jump, both.minimal, both.period) == (-3, 4, 12)
    assert np.isnan(union([irregular, irregular]).jump)
    assert union([one]) is one


def test_pooled_numbers_and_gates_lend_their_spacing_only_where_there_is_no_other():
    number = Span(np.array([[2.0]]), np.array([[3.0]]), jump=50.0)
    assert union([number, ROW]).jump == 1
    gates = [replace(ROW, cause="first", jump=2.0), replace(ROW, cause="second", jump=4.0)]
    both = union(gates)
    assert (both.jump, both.cause, both.known) == (4, "first", True)
    assert union([ROW, gates[1]]).cause == "second"


def test_alignment_prepends_only_what_is_missing():
    assert aligned(ROW, 2) is ROW
    assert aligned(ROW, 1) is ROW
    more = aligned(ROW, 3)
    assert (more.low.shape, more.high.shape, more.dims) == ((1, 1, 5), (1, 1, 5), {2})


def test_contraction_keeps_the_spacing_or_reads_it_off():
    assert contract(replace(seed((2, 6), 1), jump=4.0), [0], "why").jump == 4
    spread = replace(seed((2, 6), 1), dims=frozenset({0, 1}), jump=np.nan)
    assert contract(spread, [0], "why").jump == 1
    assert np.isnan(contract(spread, [0, 1], "why").jump)
    kept = contract(ROW, [1], "softmax", keep=True)
    assert (kept.dims, kept.cause, kept.minimal) == ({1}, "softmax", np.inf)
    earlier = contract(replace(ROW, cause="before", minimal=7.0), [1], "why")
    assert (earlier.cause, earlier.minimal, earlier.dims) == ("before", 7, frozenset())


def test_accumulation_along_another_dimension_or_a_whole_span_blames_nothing():
    other = accumulate(seed((3, 5), 1), 0, "why")
    assert (other.cause, other.minimal) == ("", 1)
    assert accumulate(replace(ROW, cause="before"), 1, "why").cause == "before"
    falling = replace(ROW, low=ROW.low[:, ::-1], high=ROW.high[:, ::-1])
    assert (lows(accumulate(falling, 1, "")), highs(accumulate(falling, 1, ""))) == (
        [4, 3, 2, 1, 0],
        [4, 4, 4, 4, 4],
    )


def test_dimensions_are_counted_anew():
    span = seed((1, 1, 4, 1), 2)
    assert insert(span, 2).dims == {3}
    assert drop(span, [3, 0]).dims == {1}
    assert drop(span, [0, 1]).low.shape == (4, 1)


@pytest.mark.parametrize(("jump", "minimal"), [(2.0, 5), (-2.0, 5), (np.nan, 1)])
def test_a_window_lengthens_the_shortest_path_by_its_reach(jump, minimal):
    assert slide(replace(ROW, jump=jump), 1, 5, THREE, extended=False).minimal == minimal


def test_a_window_over_what_is_the_same_everywhere_moves_no_bounds():
    whole = Span(np.array([[0.0]]), np.array([[4.0]]), frozenset({1}), jump=2.0, cause="pooled")
    found = slide(whole, 1, 5, replace(THREE, stride=2.0), extended=True)
    assert (lows(found), highs(found), found.jump, found.minimal) == ([0], [4], 4, 5)


@pytest.mark.parametrize(("extended", "ends"), [(False, (0, 0)), (True, (-1, 1))])
def test_a_window_over_one_position_reads_padding(extended, ends):
    taps = Taps(np.array([[-1], [0], [1]]))
    found = slide(seed((1, 1), 1), 1, 1, taps, extended=extended)
    assert (lows(found), highs(found)) == ([ends[0]], [ends[1]])


def test_a_reversed_span_goes_on_backwards():
    back = replace(ROW, low=ROW.low[:, ::-1], high=ROW.high[:, ::-1], jump=-1.0)
    found = slide(back, 1, 5, THREE, extended=True)
    assert lows(found) == [3, 2, 1, 0, -1]
    assert highs(found) == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("changes", [{"jump": np.nan}, {"dims": frozenset({0, 1})}])
def test_an_irregular_span_ends_at_its_borders(changes):
    found = slide(replace(ROW, **changes), 1, 5, THREE, extended=True)
    assert (lows(found)[0], highs(found)[-1]) == (0, 4)


def test_taps_that_are_absent_read_nothing():
    index = np.array([[0, 0, 1, 2], [1, 2, 3, 4]])
    present = np.array([[True, False, True, False], [True, True, False, False]])
    found = slide(ROW, 1, 5, Taps(index, present), extended=False)
    assert lows(found) == [0, 2, 1, np.inf]
    assert highs(found) == [1, 2, 1, -np.inf]
    # The shortest path is that of the outputs which read a single element.
    assert found.minimal == 1
    both = Taps(index, np.array([[True, False, True, False], [True, False, True, False]]))
    assert slide(ROW, 1, 5, both, extended=False).minimal == 2
    assert slide(ROW, 1, 5, both, extended=True).minimal == 2
    none = Taps(index, np.zeros_like(present))
    assert slide(ROW, 1, 5, none, extended=True).minimal == 1


def test_the_shortest_path_is_where_a_window_reaches_least():
    index = np.array([[0, 0, 0], [4, 3, 2], [1, 1, 1]])
    assert slide(ROW, 1, 5, Taps(index), extended=False).minimal == 3


def test_strides_space_the_outputs():
    strided = slide(ROW, 1, 5, Taps(np.array([[0, 2, 4], [1, 3, 5]]), stride=2.0), extended=False)
    assert (strided.jump, strided.minimal, strided.period) == (2, 2, 1)
    assert highs(strided) == [1, 3, 4]
    back = subsampled(replace(ROW, period=2), -1.0)
    assert (back.jump, back.period) == (-1, 2)


@pytest.mark.parametrize(("period", "expected"), [(3, [-1, 0, 1, 2, 3]), (4, [-1, 0, 1, 2, 3])])
def test_a_span_of_one_period_or_less_goes_on_by_it(period, expected):
    span = replace(seed((1, 3), 1), period=period)
    taps = Taps(np.arange(-1, 4)[None])
    assert lows(slide(span, 1, 3, taps, extended=True)) == expected


def test_a_period_as_long_as_the_tensor_repeats_all_of_it():
    low = np.array([[0.0, 0.0, 5.0]])
    span = Span(low, low, frozenset({1}), jump=2.0, period=3)
    taps = Taps(np.array([[-3, -2, -1, 3, 4, 5, 6]]))
    found = slide(span, 1, 3, taps, extended=True)
    assert lows(found) == [-6, -6, -1, 6, 6, 11, 12]
    longer = slide(replace(span, period=4), 1, 3, taps, extended=True)
    assert lows(longer) == [-6, -4, -2, 7, 9, 11, 13]


def test_a_period_that_does_not_divide_the_tensor_goes_on_from_its_end():
    low = np.array([[0.0, 1.0, 1.0, 6.0, 7.0]])
    span = Span(low, low, frozenset({1}), jump=2.0, period=3)
    taps = Taps(np.array([[-2, -1, 5, 6, 7]]))
    assert lows(slide(span, 1, 5, taps, extended=True)) == [-5, -5, 7, 12, 13]


def test_the_first_elements_beyond_a_tensor_are_padding():
    taps = Taps(np.array([[-1, 0, 4, 5]]))
    assert lows(slide(ROW, 1, 5, taps, extended=False)) == [np.inf, 0, 4, np.inf]


def test_two_elements_of_the_same_span_stay_the_same():
    same = Span(np.array([[0.0]]), np.array([[4.0]]), frozenset({1}))
    taps = Taps(np.array([[-1, 0], [0, 1]]))
    assert slide(same, 1, 2, taps, extended=False).low.shape == (1, 1)


def test_the_dimensions_of_a_union_are_those_of_its_largest_operand():
    both = union([ROW, seed((2, 3, 5), 2)])
    assert (both.dims, both.low.shape) == ({2}, (1, 1, 5))


def test_a_mirror_turns_at_the_last_element():
    taps = Taps(np.array([[3, 4, 5, 6, -1]]), edge="reflect")
    assert lows(slide(ROW, 1, 5, taps, extended=False)) == [3, 4, 3, 2, 1]


def test_compression_needs_both_bounds_to_be_constant():
    flat = compressed(Span(np.zeros((2, 3)), np.ones((2, 3))))
    assert (flat.low.shape, flat.high.shape, lows(flat), highs(flat)) == ((1, 1), (1, 1), [0], [1])
    rising = np.array([[0.0, 1.0], [0.0, 2.0]])
    assert compressed(Span(rising, np.ones((2, 2)))).low.shape == (2, 2)


def test_spacing_is_that_of_the_hull_over_the_other_dimensions():
    low = np.array([[0.0, 1, 2], [4, 3, 2]])
    span = Span(low, np.array([[5.0, 9, 13], [6, 6, 6]]), frozenset({1}))
    # Lows 0, 1, 2 and highs 6, 9, 13 have centres 3, 5, 7.5; with 12 they are evenly spaced.
    assert np.isnan(spacing(span))
    span.high[0, 2] = 12
    assert spacing(span) == 2
    assert spacing(seed((1, 2), 1)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"dims": frozenset()},
        {"dims": frozenset({0, 1})},
        {"low": np.array([[np.inf, 1.0, 2.0, 3.0, 4.0]])},
        {"high": np.array([[0.0, 1.0, 2.0, 3.0, -np.inf]])},
        {"low": np.array([[0.0]]), "high": np.array([[0.0]])},
        {"low": np.array([[np.inf, 1.0]]), "high": np.array([[0.0, 1.0]])},
        {"low": np.array([[0.0, 1.0]]), "high": np.array([[0.0, -np.inf]])},
    ],
)
def test_there_is_not_always_a_spacing(changes):
    assert np.isnan(spacing(replace(ROW, **changes)))


def test_everything_is_the_hull_of_all():
    other = Span(np.array([2.0, -3.0]), np.array([9.0, 1.0]))
    whole = everything([ROW, other], 3, "sort", known=True)
    assert (lows(whole), highs(whole), whole.low.shape, whole.high.shape) == (
        [-3], [9], (1, 1, 1), (1, 1, 1)
    )  # fmt: skip
    assert np.isnan(whole.jump)
    assert (whole.minimal, whole.cause, whole.known, whole.dims) == (
        np.inf, "sort", True, frozenset()
    )  # fmt: skip
    assert everything([ROW], 1, "sort", known=False).known is False
    lost = replace(ROW, cause="before", known=False)
    after = everything([ROW, lost, replace(lost, cause="later")], 1, "sort", known=True)
    assert (after.cause, after.known) == ("before", False)


def test_nothing_is_an_empty_hull():
    low, high = empty(2)
    assert (low.tolist(), high.tolist()) == ([[np.inf]], [[-np.inf]])


@pytest.mark.parametrize(
    ("value", "count", "expected"),
    [(3, 2, [3, 3]), ([4], 3, [4, 4, 4]), ((1, 2), 2, [1, 2]), ((1, 2), 1, [1, 2])],
)
def test_arguments_are_one_for_all_or_one_for_each(value, count, expected):
    assert as_list(value, count) == expected
