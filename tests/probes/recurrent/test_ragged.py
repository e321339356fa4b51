"""Packed batches of unequal length: each sample must come out as if it had been alone."""

from itertools import product

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from probes.errors import AnalyzerError
from probes.recurrent.backward.cells import Weights, rnn_gates
from probes.recurrent.watching.split import recorded

TOLERANCE = 1e-12
INPUTS, UNITS = 4, 5
SORTED, UNSORTED = (9, 6, 3, 3), (3, 9, 1, 6)


def objective(y, finals, weights):
    """Depends on every output and final state of the samples given."""
    terms = (weight * torch.sin(part) for weight, part in zip(weights, [y, *finals], strict=True))
    return sum(term.sum() for term in terms)


@pytest.mark.parametrize(
    ("kind", "layers", "both", "given", "lengths"),
    [*product(("LSTM", "PROJ", "GRU", "RNN"), (1, 2), (False, True), (False, True),
              (SORTED, UNSORTED))],
)  # fmt: skip
def test_each_sample_is_as_if_alone(
    kind, layers, both, given, lengths, trained, unrolled, kept_grads, error
):
    options = {"proj_size": 3} if kind == "PROJ" else {}
    kind = "LSTM" if kind == "PROJ" else kind
    module = trained(kind, INPUTS, UNITS, layers, bidirectional=both, **options)
    units = options.get("proj_size", UNITS)
    rows, samples = layers * (2 if both else 1), len(lengths)
    x = torch.randn(max(lengths), samples, INPUTS, dtype=torch.float64, requires_grad=True)
    h0 = torch.randn(rows, samples, units, dtype=torch.float64) * given
    c0 = torch.randn(rows, samples, UNITS, dtype=torch.float64) * given
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=lengths == SORTED)
    states = (h0, c0) if kind == "LSTM" else h0
    plain, _ = module(packed, states if given else None)
    with recorded(module, keep="all", weights=True) as recordings:
        output, final = module(packed, states if given else None)
    assert torch.equal(output.data, plain.data)
    y, finals = pad_packed_sequence(output)[0], final if kind == "LSTM" else (final,)

    weights = [torch.randn_like(part) for part in (y, *finals)]
    leaves = [x, *module.parameters()]
    gradients = torch.autograd.grad(objective(y, finals, weights), leaves)
    alone = []
    for b, length in enumerate(lengths):
        one = slice(b, b + 1)
        alone.append(unrolled(module, x[:length, one], h0[:, one], c0[:, one]))
        own = [weights[0][:length, one], *(weight[:, one] for weight in weights[1:])]
        objective(alone[-1].y, alone[-1].finals, own).backward()

    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert error(gradient, leaf.grad) < TOLERANCE
    for found in recordings.take():
        key = (found.site.layer, found.site.reverse)
        assert found.lengths.tolist() == list(lengths)
        assert found.measured.residual < TOLERANCE
        gradient, norms = found.measured.trajectory.hidden_gradient, found.measured.hidden
        for b, length in enumerate(lengths):
            hidden = kept_grads(alone[b].hidden[key])[:, 0]
            assert error(gradient[:length, b], hidden) < TOLERANCE
            assert error(norms[:length, b], hidden.norm(dim=-1)) < TOLERANCE
            assert not norms[length:, b].any()
            if kind == "LSTM":
                cell = kept_grads(alone[b].cell[key])[:, 0]
                assert error(found.measured.cell[:length, b], cell.norm(dim=-1)) < TOLERANCE


def test_the_order_of_samples_is_kept_in_a_subclass(trained):
    class Packing(torch.nn.GRU):
        def forward(self, x, lengths):
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(super().forward(packed)[0], batch_first=True)[0]

    model = Packing(INPUTS, UNITS)
    x = torch.randn(4, 9, INPUTS)
    with recorded(model) as recordings:
        y = model(x, torch.tensor(UNSORTED))
    (only_third,) = recordings.gradients(y[2].sum())
    assert (only_third.measured.hidden.sum(0) > 0).tolist() == [False, False, True, False]


def test_packed_data_in_an_unknown_order_are_refused(trained):
    module = trained("GRU", INPUTS, UNITS)
    packed = pack_padded_sequence(
        torch.randn(9, 4, INPUTS, dtype=torch.float64), torch.tensor(SORTED)
    )
    assert isinstance(packed, PackedSequence)
    h0 = torch.zeros(1, 4, UNITS, dtype=torch.float64)
    arguments = (h0, module._flat_weights, True, 1, 0.0, False, False)
    with pytest.raises(AnalyzerError) as caught, recorded(module):
        torch.gru(packed.data, packed.batch_sizes, *arguments)
    assert str(caught.value) == (
        "a recurrent operation runs on packed data outside of torch.nn.LSTM, GRU and RNN: the "
        "order of the samples is not known there; call it through one of these"
    )


def test_some_timesteps_of_a_long_elman_network_are_replayed(trained):
    module = trained("RNN", INPUTS, UNITS, bidirectional=True)
    lengths = torch.tensor([40, 17, 5])
    x = torch.randn(40, 3, INPUTS, dtype=torch.float64)
    weights = Weights(*module._flat_weights[:4])
    hidden = module(x)[0][..., :UNITS].detach()
    before = torch.cat([torch.zeros_like(hidden[:1]), hidden[:-1]])
    gates = rnn_gates(x, before, hidden, weights, relu=False)
    torch.testing.assert_close(gates.replayed, hidden[::3], rtol=0, atol=1e-12)

    with recorded(module) as recordings:
        output, _ = module(pack_padded_sequence(x, lengths))
    for found in recordings.gradients(output.data.sin()):
        assert found.measured.residual < TOLERANCE
