"""Inner products of sums of outer products against the sums themselves."""

import pytest
import torch

from probes.recurrent.shares import halves, outer
from probes.recurrent.shares.halves import Terms, halved
from probes.recurrent.shares.outer import Outer, inner, own_inner

SPANS = ((0, 3), (3, 7), (7, 8))
"""Columns of three weights; a last column belongs to none."""


def random_outer(sums, count, rows=6, dtype=torch.float64):
    return Outer(
        torch.randn(sums, count, rows, dtype=dtype), torch.randn(sums, count, 9, dtype=dtype), SPANS
    )


def explicit(part):
    """Every outer product of every weight: (W, S, K, X)."""
    formed = torch.einsum("skg,ski->skig", part.left.double(), part.right.double())
    return [formed[:, :, a:b].flatten(2) for a, b in part.spans]


@pytest.mark.parametrize("measure", [inner, outer._gram, outer._formed])
def test_inner_products_of_sums(measure):
    one, other = random_outer(5, 4), random_outer(5, 7)
    expected = torch.stack(
        [(a.sum(1) * b.sum(1)).sum(1) for a, b in zip(explicit(one), explicit(other), strict=True)]
    )
    torch.testing.assert_close(measure(one, other), expected, rtol=1e-12, atol=1e-12)
    squares = torch.stack([a.sum(1).square().sum(1) for a in explicit(one)])
    torch.testing.assert_close(measure(one, one), squares, rtol=1e-12, atol=0)


def test_few_products_of_many_numbers_take_the_gram_form(monkeypatch):
    def refused(*_):
        raise AssertionError

    monkeypatch.setattr(outer, "_formed", refused)
    inner(random_outer(2, 1, rows=200), random_outer(2, 2, rows=200))
    monkeypatch.undo()
    monkeypatch.setattr(outer, "_gram", refused)
    inner(random_outer(2, 30, rows=6), random_outer(2, 40, rows=6))


def test_pieces_make_no_difference(monkeypatch):
    one = random_outer(11, 4)
    expected, own = inner(one, one), own_inner([one])
    totals = one.total().double(), one.formed().view(11, 9, 6)
    against = [one.against(total) for total in totals]
    monkeypatch.setattr(outer, "AT_ONCE", 1)
    for total, whole in zip(totals, against, strict=True):
        torch.testing.assert_close(one.against(total), whole, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(inner(one, one), expected, rtol=0, atol=0)
    torch.testing.assert_close(own_inner([one])[0], own[0], rtol=1e-13, atol=1e-13)


def test_sums_over_samples_are_taken_in_double_precision():
    values_NX = torch.zeros(3, halves.COLUMNS + 5)
    values_NX[:, -2] = torch.tensor([1e8, 1.0, -1e8])
    found_X = halves._summed(values_NX)
    assert found_X.shape == (halves.COLUMNS + 5,)
    assert found_X[-2] == 1
    assert found_X.sum() == 1


@pytest.mark.parametrize("rows", [6, 900])
def test_inner_products_with_the_own_sum(rows):
    parts = [random_outer(3, 2, rows), random_outer(3, 4, rows)]
    singles = [torch.cat(columns, 1) for columns in zip(*map(explicit, parts), strict=True)]
    expected = torch.stack([(one * one.sum(1, keepdim=True)).sum(2) for one in singles])
    found = torch.cat(own_inner(parts), 1)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-12, atol=1e-10)


def test_against_one_matrix_or_one_for_each_sum():
    part, total = random_outer(3, 4), torch.randn(3, 9, 6, dtype=torch.float64)
    for matrix, each in ((total[0], total[:1].expand(3, -1, -1)), (total, total)):
        expected = [
            (one * each[:, None, a:b].flatten(2)).sum(2)
            for one, (a, b) in zip(explicit(part), SPANS, strict=True)
        ]
        torch.testing.assert_close(part.against(matrix), torch.stack(expected))


def test_products_that_cancel_keep_their_norm_in_float32():
    left = torch.randn(7, 32, 200)
    left = left - left.mean(1, keepdim=True) * 0.999999
    right = torch.randn(7, 1, 9).expand(7, 32, 9) + 1e-3 * torch.randn(7, 32, 9)
    part = Outer(left, right.contiguous(), SPANS)
    exact = torch.stack([one.sum(1).square().sum(1) for one in explicit(part)])
    cancelled = exact.sqrt() / torch.stack([one.norm(dim=2).sum(1) for one in explicit(part)])
    assert cancelled.median() < 5e-4
    torch.testing.assert_close(outer._gram(part, part), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(outer._formed(part, part), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("measure", [outer._gram, outer._formed])
def test_small_numbers_do_not_vanish_in_float32(measure):
    part = random_outer(4, 3, dtype=torch.float32)
    tiny = part._replace(left=part.left * 1e-24)
    torch.testing.assert_close(measure(tiny, tiny) * 1e48, measure(part, part), rtol=1e-5, atol=0)
    nothing = part._replace(left=torch.zeros_like(part.left))
    assert not measure(nothing, nothing).any()


def ragged_terms(timesteps, lengths):
    """Outer products that are zero past the end of a sample."""
    left = torch.randn(timesteps, len(lengths), 6, dtype=torch.float64)
    left[torch.arange(timesteps)[:, None] >= torch.tensor(lengths)] = 0
    right = torch.randn(timesteps, len(lengths), 9, dtype=torch.float64)
    return Terms(left, right, SPANS, torch.tensor(lengths) // 2)


def cosine(a, b):
    return (a * b).sum() / (a.norm() * b.norm())


@pytest.mark.parametrize("formed", [True, False])
@pytest.mark.parametrize("lengths", [[[6, 6, 6]], [[7, 7, 7]], [[2, 7, 5]], [[2, 7, 5], [4, 1, 3]]])
def test_halves_of_ragged_samples(lengths, formed, monkeypatch):
    monkeypatch.setattr(halves, "FORMED", 2**23 if formed else 0)
    terms = [ragged_terms(7, own) for own in lengths]
    found = halved(terms)
    singles = [torch.einsum("tng,tni->tnig", one.left, one.right) for one in terms]
    late = [torch.arange(7)[:, None] >= one.half for one in terms]
    for weight, (a, b) in enumerate(SPANS):
        own = [single[:, :, a:b].flatten(2) for single in singles]
        first = sum((one * ~mask[..., None]).sum(0) for one, mask in zip(own, late, strict=True))
        second = sum((one * mask[..., None]).sum(0) for one, mask in zip(own, late, strict=True))
        whole = (first + second).sum(0)
        assert float(found.norm[weight]) == pytest.approx(float(whole.norm()), rel=1e-12)
        expected = cosine(first.sum(0), second.sum(0))
        assert float(found.cosine[weight]) == pytest.approx(float(expected), rel=1e-9)
        for sample in range(3):
            others = [n for n in range(3) if n != sample]
            without = cosine(first[others].sum(0), second[others].sum(0))
            assert float(found.cosine_without[weight, sample]) == pytest.approx(float(without))
            alone = first[sample] + second[sample]
            assert float(found.sample_norm[weight, sample]) == pytest.approx(float(alone.norm()))
            if first[sample].any():
                agreement = cosine(first[sample], second[sample])
                assert float(found.sample_cosine[weight, sample]) == pytest.approx(float(agreement))
        for index, one in enumerate(own):
            torch.testing.assert_close(found.inner[index][weight], one @ whole)
            against_own = (one * (first + second)).sum(2)
            torch.testing.assert_close(found.own[index][weight], against_own)


@pytest.mark.parametrize("formed", [True, False])
def test_halves_of_very_unequal_size_in_float32(formed, monkeypatch):
    monkeypatch.setattr(halves, "FORMED", 2**23 if formed else 0)
    exact = ragged_terms(8, [8, 8, 8])
    exact.left[:4] *= 1e-9
    single = exact._replace(left=exact.left.float(), right=exact.right.float())
    expected, found = halved([exact]), halved([single])
    torch.testing.assert_close(found.cosine, expected.cosine, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.cosine_without, expected.cosine_without, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sample_cosine, expected.sample_cosine, rtol=0, atol=1e-5)


def squared_rest(first, dtype):
    """Squared norm of a half without the first sample, in roundings of what it comes from."""
    sizes = first.sum(0).norm() + first[0].norm()
    return first[1:].sum(0).square().sum() / (torch.finfo(dtype).eps * sizes.square())


@pytest.mark.parametrize("formed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("roundings", "known"), [(50, False), (200, True)])
@pytest.mark.parametrize("half", [slice(0, 4), slice(4, 8)])
def test_without_a_sample_that_is_nearly_everything_the_cosine_is_unknown(
    roundings, known, half, dtype, formed, monkeypatch
):
    monkeypatch.setattr(halves, "FORMED", 2**23 if formed else 0)
    terms = ragged_terms(8, [8, 8, 8])._replace(spans=((0, 9),))
    singles = torch.einsum("tng,tni->nitg", terms.left[half], terms.right[half]).sum(2).flatten(1)
    # A sample that is so much larger than the others that it, and the whole, are k times as large.
    k = (squared_rest(singles, dtype) / roundings).sqrt()
    for _ in range(50):
        k = k * (squared_rest(torch.cat([k * singles[:1], singles[1:]]), dtype) / roundings).sqrt()
    terms.left[half, 0] *= k
    exact = halved([terms])
    found = halved([terms._replace(left=terms.left.to(dtype), right=terms.right.to(dtype))])
    assert found.cosine_without[0].isnan().tolist() == [not known, False, False]
    assert not found.cosine.isnan().any()
    assert not found.sample_cosine.isnan().any()
    if known and dtype == torch.float32:
        torch.testing.assert_close(found.cosine_without, exact.cosine_without, rtol=0, atol=1e-3)


def test_samples_beside_which_others_add_nothing():
    terms = ragged_terms(8, [8, 8, 8])
    terms.left[:, 1:] = 0
    found = halved([terms])
    assert found.cosine_without.isnan().tolist() == [[True, False, False]] * 3
    for sample in (1, 2):
        torch.testing.assert_close(found.cosine_without[:, sample], found.cosine)


def test_a_half_without_a_gradient_has_no_cosine():
    terms = ragged_terms(4, [4, 4])
    terms.left[:2] = 0
    found = halved([terms])
    assert found.cosine.isnan().all()
    assert found.sample_cosine.isnan().all()
    assert (found.norm > 0).all()
