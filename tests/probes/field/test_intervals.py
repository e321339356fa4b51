"""The algebra of spans: what rules are made of."""

from dataclasses import replace

import numpy as np
import pytest

from probes.field.intervals import (
    Span,
    Taps,
    accumulate,
    aligned,
    compressed,
    contract,
    drop,
    insert,
    permute,
    seed,
    slide,
    spacing,
    subsampled,
    union,
)
from probes.field.rules_layout import reshaped


def bounds(span: Span) -> list[tuple[float, float]]:
    return [*zip(span.low.ravel().tolist(), span.high.ravel().tolist(), strict=True)]


WINDOW = Taps(np.arange(5) - 1 + np.arange(3)[:, None])


def test_a_seed_depends_on_itself():
    span = seed((1, 4, 5), 2)
    assert span.low.shape == (1, 1, 5)
    assert bounds(span) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]
    assert span.dims == {2}
    assert (span.jump, span.minimal, span.cause, span.known, span.period) == (1, 1, "", True, 1)


def test_a_window_is_clipped_or_goes_on():
    span = seed((1, 1, 5), 2)
    clipped = slide(span, 2, 5, WINDOW, extended=False)
    assert bounds(clipped) == [(0, 1), (0, 2), (1, 3), (2, 4), (3, 4)]
    extended = slide(span, 2, 5, WINDOW, extended=True)
    assert bounds(extended) == [(-1, 1), (0, 2), (1, 3), (2, 4), (3, 5)]
    assert (clipped.minimal, extended.minimal, extended.jump) == (3, 3, 1)


def test_a_window_that_reads_padding_alone_is_empty():
    far = slide(seed((1, 5), 1), 1, 5, Taps(np.array([[-2, 0, 7]])), extended=False)
    assert bounds(far) == [(np.inf, -np.inf), (0, 0), (np.inf, -np.inf)]


@pytest.mark.parametrize(("edge", "expected"), [("clip", [0, 0, 4, 4]), ("reflect", [2, 1, 4, 2])])
def test_edges_are_clipped_or_mirrored(edge, expected):
    taps = Taps(np.array([[-2, -1, 4, 6]]), edge=edge)
    found = slide(seed((1, 5), 1), 1, 5, taps, extended=False)
    assert found.low.ravel().tolist() == expected
    beyond = slide(seed((1, 5), 1), 1, 5, taps, extended=True)
    assert beyond.low.ravel().tolist() == [-2, -1, 4, 6]


def test_a_window_along_another_dimension_changes_nothing():
    span = seed((1, 4, 5), 2)
    assert slide(span, 1, 4, WINDOW, extended=True) is span


def test_a_whole_span_does_not_go_on():
    span = replace(seed((1, 5), 1), cause="because")
    assert bounds(slide(span, 1, 5, WINDOW, extended=True))[0] == (0, 1)


def test_a_periodic_span_goes_on_by_its_period():
    # Behind a doubling, pairs share a field; the next pair starts one position later.
    low = np.array([[0.0, 0, 1, 1, 2, 2]])
    span = Span(low, low + 1, frozenset({1}), jump=0.5, period=2)
    taps = Taps(np.array([[-3, -2, -1, 6, 7, 8]]))
    assert slide(span, 1, 6, taps, extended=True).low.ravel().tolist() == [-2, -1, -1, 3, 3, 4]


@pytest.mark.parametrize(
    ("period", "stride", "expected"), [(1, 2, 1), (1, 0.5, 2), (2, 0.5, 4), (4, 2, 2), (3, 2, 3)]
)
def test_periods_follow_strides(period, stride, expected):
    span = replace(seed((1, 5), 1), period=period)
    assert subsampled(span, stride).period == expected
    assert subsampled(span, stride).jump == stride


def test_union_broadcasts_and_takes_the_hull():
    row, number = seed((1, 3), 1), Span(np.array(1.0), np.array(1.0), minimal=7, jump=np.nan)
    both = union([row, number])
    assert bounds(both) == [(0, 1), (1, 1), (1, 2)]
    assert both.dims == {1}
    assert (both.jump, both.minimal) == (1, 1)


def test_union_prefers_the_cause_of_what_is_unknown():
    span = seed((1, 3), 1)
    whole, unknown = replace(span, cause="gate"), replace(span, cause="op", known=False)
    both = union([whole, unknown])
    assert (both.cause, both.known) == ("op", False)


def test_the_spacing_of_a_union_is_that_of_the_map_and_not_of_the_gate():
    gate = replace(seed((1, 3), 1), cause="gate", jump=32.0)
    assert union([gate, seed((1, 3), 1)]).jump == 1


def test_contracting_all_dimensions_of_an_axis_makes_it_whole():
    span = replace(seed((2, 6), 1), dims=frozenset({0, 1}))
    part, whole = contract(span, [0], "why"), contract(span, [0, 1], "why")
    assert (part.cause, part.dims) == ("", {1})
    assert (whole.cause, whole.dims, whole.minimal) == ("why", frozenset(), np.inf)
    assert bounds(whole) == [(0, 5)]


def test_contracting_other_dimensions_keeps_the_span_exact():
    channels = Span(np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]]))
    assert bounds(contract(channels, [0], "why")) == [(0, 3)]
    assert contract(channels, [0], "why").cause == ""


def test_accumulation_sees_what_came_before():
    span = accumulate(seed((1, 3), 1), 1, "why")
    assert bounds(span) == [(0, 0), (0, 1), (0, 2)]
    assert (span.cause, span.minimal) == ("why", np.inf)


def test_dimensions_move_with_the_axis():
    span = seed((1, 4, 5), 2)
    assert permute(span, (2, 0, 1)).dims == {0}
    assert permute(span, (-1, 0, 1)).low.shape == (5, 1, 1)
    assert insert(span, 1).dims == {3}
    assert insert(span, 3).dims == {2}
    assert drop(span, [0]).dims == {1}
    assert drop(contract(span, [2], "why"), [2]).dims == frozenset()
    assert aligned(span, 5).dims == {4}


def test_bounds_are_compressed_together():
    low, high = np.zeros((2, 3)), np.tile(np.arange(3.0), (2, 1))
    span = compressed(Span(low, high))
    assert (span.low.shape, span.high.shape) == ((1, 3), (1, 3))


def test_spacing_is_read_off_the_bounds():
    assert spacing(replace(seed((1, 4), 1), low=np.array([[0.0, 3, 6, 9]]))) == 2
    assert np.isnan(spacing(replace(seed((1, 4), 1), low=np.array([[0.0, 3, 3, 9]]))))


@pytest.mark.parametrize(
    ("before", "after", "dim", "dims"),
    [
        ((1, 6, 4, 5), (1, 6, 20), 2, {2}),
        ((1, 6, 4, 5), (1, 120), 3, {1}),
        ((1, 6, 12), (1, 6, 3, 4), 2, {2, 3}),
        ((1, 6, 12), (1, 2, 3, 12), 2, {3}),
        ((1, 6, 12), (6, 12), 2, {1}),
        ((1, 6, 1, 12), (1, 6, 12), 2, set()),
        ((1, 6, 1, 1), (1, 6, 1), 2, {2}),
        ((4, 5, 1), (4, 1, 5, 1), 1, {2}),
    ],
)
def test_reshaping_follows_the_axis(before, after, dim, dims):
    span = reshaped(seed(before, dim), before, after)
    assert span.dims == dims
    full = np.broadcast_to(seed(before, dim).low, before).reshape(after)
    np.testing.assert_array_equal(np.broadcast_to(span.low, after), full)


def test_reshaping_there_and_back_keeps_the_spacing():
    span = replace(seed((1, 2, 3, 8), 3), jump=4.0, low=seed((1, 2, 3, 8), 3).low * 4)
    span = replace(span, high=span.low + 2)
    tokens = reshaped(span, (1, 2, 3, 8), (1, 2, 24))
    assert np.isnan(tokens.jump)
    back = reshaped(tokens, (1, 2, 24), (1, 2, 3, 8))
    assert (back.dims, back.jump) == ({3}, 4)
