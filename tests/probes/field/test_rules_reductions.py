"""Operators that combine elements along whole dimensions: every element, against nan."""

import pytest
import torch
from followed import assert_clipped, fields, staggered
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import rnn

X = torch.rand(1, 3, 6, 8, dtype=torch.float64)
"""Its axes are the last two dimensions."""

REDUCED = "reduction of the whole map"
MIXED = "mixing of all positions"
EARLIER = "accumulation over all earlier positions"
STATISTICS = "statistics of the whole map"
PRODUCT = "dense product over all positions"
ATTENTION = "attention over all positions"


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.float64)


def attend(query: Tensor, key: Tensor, value: Tensor, *more, **settings) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, *more, **settings)


TOKENS = ones(1, 3, 5, 8)

CALLS: dict[str, tuple] = {
    # Name: function, dimensions of both axes, and what makes either the whole input.
    "all": (lambda x: x.mean(), (set(), set()), (REDUCED, REDUCED)),
    "of a number": (
        lambda x: x.mean().amax(0).softmax(0).cumsum(0),
        (set(), set()),
        (REDUCED, REDUCED),
    ),
    "rows": (lambda x: x.sum(2), (set(), {2}), (REDUCED, "")),
    "columns": (lambda x: x.sum((1, -1)), ({1}, set()), ("", REDUCED)),
    "columns, kept": (lambda x: x.amax(-1, keepdim=True), ({2}, set()), ("", REDUCED)),
    "channels": (lambda x: torch.max(x, 1)[0], ({1}, {2}), ("", "")),
    "channels, two results": (lambda x: torch.var_mean(x, (1,)), ({1}, {2}), ("", "")),
    "norm": (lambda x: x.norm(dim=-3, keepdim=True), ({2}, {3}), ("", "")),
    "softmax over channels": (lambda x: x.softmax(1), ({2}, {3}), ("", "")),
    "softmax": (lambda x: x.softmax(-1), ({2}, {3}), ("", MIXED)),
    "softmax in other rows": (
        lambda x: x.softmax(2).reshape(1, 3, 12, -1),
        ({2}, {2, 3}),
        (MIXED, ""),
    ),
    "logarithm of a softmax": (lambda x: x.log_softmax(2), ({2}, {3}), (MIXED, "")),
    "spectrum": (lambda x: torch.fft.rfft2(x).abs(), ({2}, {3}), (MIXED, MIXED)),
    "spectrum over channels": (lambda x: torch.fft.fft(x, dim=-3).abs(), ({2}, {3}), ("", "")),
    "sum so far": (lambda x: x.cumsum(-1), ({2}, {3}), ("", EARLIER)),
    "product so far": (lambda x: x.cumprod(2), ({2}, {3}), (EARLIER, "")),
    "sum of channels so far": (lambda x: x.cumsum(1), ({2}, {3}), ("", "")),
    "layer norm of channels": (
        lambda x: functional.layer_norm(x.movedim(1, -1), (3,), ones(3)),
        ({1}, {2}),
        ("", ""),
    ),
    "layer norm": (
        lambda x: functional.layer_norm(x, (x.shape[-1],)),
        ({2}, {3}),
        ("", STATISTICS),
    ),
    "layer norm of both": (
        lambda x: functional.layer_norm(x, x.shape[2:]),
        ({2}, {3}),
        (STATISTICS, STATISTICS),
    ),
    "rows times a matrix": (lambda x: x[0, 0] @ ones(x.shape[-1], 5), ({0}, set()), ("", PRODUCT)),
    "a matrix times columns": (lambda x: ones(4, 6) @ x[0, 0], (set(), {1}), (PRODUCT, "")),
    "a square": (lambda x: x[0, 0] @ x[0, 1].t(), ({0, 1}, set()), ("", PRODUCT)),
    "matrices times matrices": (
        lambda x: x[0].bmm(ones(3, x.shape[-1], 2)),
        ({1}, set()),
        ("", PRODUCT),
    ),
    "matrices with channels that differ": (
        lambda x: ones(6, 2, 3).bmm(x[0].transpose(0, 1)),
        ({0}, {2}),
        ("", ""),
    ),
    "rows times a vector": (lambda x: x[0, 0] @ ones(x.shape[-1]), ({0}, set()), ("", PRODUCT)),
    "a matrix times a vector": (
        lambda x: ones(4, x.shape[-1]) @ x[0, 0, 3],
        (set(), set()),
        ("", PRODUCT),
    ),
    "a vector times a vector": (lambda x: ones(6) @ x[0, 0, :, 3], (set(), set()), (PRODUCT, "")),
    "a vector times itself": (
        lambda x: x[0, 0, :, 3] @ x[0, 0, :, 4],
        (set(), set()),
        (PRODUCT, ""),
    ),
    "vector plus product": (
        lambda x: torch.addmv(x[0, 0, :, 2], ones(6, 6), x[0, 0, :, 0]),
        ({0}, set()),
        (PRODUCT, ""),
    ),
    "bias alone": (
        lambda x: torch.addmv(x[0, 0, 0], ones(x.shape[-1], 3), ones(3)),
        (set(), {0}),
        ("", ""),
    ),
    "bias plus product": (
        lambda x: torch.addmm(x[0, 0, 1, :5], x[0, 0], ones(x.shape[-1], 5)),
        ({0}, {1}),
        ("", PRODUCT),
    ),
    "bias, product and activation": (
        lambda x: torch._addmm_activation(x[0, 0, 1, :5], x[0, 1], ones(x.shape[-1], 5)),
        ({0}, {1}),
        ("", PRODUCT),
    ),
    "biases plus products": (
        lambda x: torch.baddbmm(x[0, :, :1], x[0, :, :4], ones(3, x.shape[-1], x.shape[-1])),
        ({1}, {2}),
        ("", PRODUCT),
    ),
    "query": (
        lambda x: attend(x, TOKENS[..., : x.shape[-1]], TOKENS),
        ({2}, set()),
        ("", ATTENTION),
    ),
    "query of earlier keys": (
        lambda x: attend(x, TOKENS[..., : x.shape[-1]], TOKENS, is_causal=True),
        ({2}, set()),
        ("", ATTENTION),
    ),
    "key": (
        lambda x: attend(TOKENS[..., : x.shape[-1]], x, ones(*x.shape)),
        (set(), set()),
        (ATTENTION, ATTENTION),
    ),
    "value": (lambda x: attend(TOKENS, ones(1, 3, 6, 8), x), (set(), {3}), (ATTENTION, "")),
    "mask": (
        lambda x: attend(
            ones(1, 3, 6, 4), ones(1, 3, x.shape[-1], 4), ones(1, 3, x.shape[-1], 4), x
        ),
        ({2}, set()),
        ("", ATTENTION),
    ),
    "mask without heads": (
        lambda x: attend(
            ones(1, 3, 6, 4), ones(1, 3, x.shape[-1], 4), ones(1, 3, x.shape[-1], 4), x[0, 1]
        ),
        ({2}, set()),
        ("", ATTENTION),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_elements_are_followed(name):
    function, dims, causes = CALLS[name]
    for extended, _, clipped in assert_clipped(function, X, (2, 3)):
        for field in (extended, clipped):
            assert tuple({*span.dims} for span in field) == dims
            assert tuple(span.cause.partition(" (")[0] for span in field) == causes


@pytest.mark.parametrize("name", CALLS)
def test_channels_that_differ_are_followed(name):
    x = torch.rand(1, 3, 6, 10, dtype=torch.float64)
    assert_clipped(lambda x: CALLS[name][0](staggered(x)), x, (2, 3))


def test_statistics_of_positions_are_gates():
    ((extended, ungated, clipped),) = fields(lambda x: functional.layer_norm(x, (8,)), X, (2, 3))
    assert [span.cause == "" for span in extended] == [True, False]
    assert [span.cause for span in ungated] == ["", ""]
    assert ungated[1].high.ravel().tolist() == [*range(8)]
    assert clipped[1].high.ravel().tolist() == [7]
    ((extended, ungated, _),) = fields(lambda x: functional.layer_norm(x.mT, (6,)), X, (3,))
    assert ungated is extended


SCALED = "a scale computed from the input"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.layer_norm(ones(2, 8), (8,), x[0, 0, 0]),
        lambda x: functional.layer_norm(x, (8,), bias=x[0, 0, 0]),
        lambda x: functional.batch_norm(ones(1, 8, 2), ones(8), ones(8), x[0, 0, 0]),
        lambda x: functional.batch_norm(x, ones(3), ones(3), bias=x[0, :, 0, 0]),
    ],
)
def test_computed_scales_are_not_lost(function):
    ((extended, _, clipped),) = fields(function, X, (2, 3))
    for span, size in zip((*extended, *clipped), (6, 8, 6, 8), strict=True):
        assert span.cause.partition(" (")[0] == SCALED
        assert (span.known, span.high.max() < size, span.dims) == (True, True, frozenset())


def round_trip(x: Tensor, lengths: Tensor, *, first: bool, **more) -> Tensor:
    packed = rnn.pack_padded_sequence(x, lengths, batch_first=first)
    return rnn.pad_packed_sequence(packed, batch_first=first, **more)[0]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("length", [1, 3, 5])
def test_packed_sequences_are_followed(first, length):
    shape, dim = ((1, 5, 2), 1) if first else ((5, 1, 2), 0)
    x, lengths = torch.rand(*shape, dtype=torch.float64), torch.tensor([length])

    def function(x: Tensor) -> Tensor:
        features = torch.cat([x[..., :1], x.flip(dim)[..., 1:]], -1)
        return round_trip(features, lengths, first=first, total_length=5)

    ((extended, _, _),) = assert_clipped(function, x, [dim])
    assert extended[0].dims == {dim}
    packed, _ = fields(
        lambda x: [*rnn.pack_padded_sequence(x, lengths, batch_first=first)][:2], x, [dim]
    )
    assert packed is not None
    assert packed[0][0].high.ravel().tolist() == [*range(length)]
    assert packed[0][0].dims == {0}


def test_computed_lengths_are_not_lost():
    ((extended, _, _), *_) = fields(
        lambda x: rnn.pack_padded_sequence(ones(1, 3, 2), x.sum(1), batch_first=True).data,
        torch.tensor([[1, 1, 0]]),
        [1],
    )
    assert (
        extended[0].cause
        == "lengths computed from the input (_pack_padded_sequence) in the model itself"
    )


def test_what_attention_keeps_for_its_gradient_is_not_followed():
    run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found = fields(lambda x: run(x, x, x), X, (2, 3))
    assert [each is None for each in found] == [False, True]
