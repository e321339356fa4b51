"""Step Jacobians against automatic differentiation, and exponents whose value is known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes.base import Batch, Subject
from probes.model.taps import untouched
from probes.recurrent.reach.tangent import Spectrum, advance, locals_of, spectrum
from probes.recurrent.watching.reading import Reading
from probes.recurrent.watching.watch import read

INPUTS, UNITS, B = 3, 5, 2
Trained = Callable[..., nn.RNNBase]


def readings(module: nn.RNNBase, x: Tensor) -> list[Reading]:
    with untouched(module):
        return read(Subject(module, [x], batch_axis=1), Batch(x)).readings


def state_map(module: nn.RNNBase, x_BI: Tensor) -> Callable[[Tensor], Tensor]:
    """From the state of all layers of one sample to the next one, as one vector each."""
    layers, size = module.num_layers, module.proj_size or UNITS

    def step(state: Tensor) -> Tensor:
        if module.mode != "LSTM":
            return module(x_BI[None], state.view(layers, 1, UNITS))[1].flatten()
        hidden, cell = state.view(layers, 1, size + UNITS).split([size, UNITS], -1)
        after = module(x_BI[None], (hidden.contiguous(), cell.contiguous()))[1]
        return torch.cat(after, -1).flatten()

    return step


KINDS = [
    ("LSTM", {}),
    ("LSTM", {"proj_size": 2}),
    ("GRU", {}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_derivative_of_a_step_is_that_of_autograd(
    kind: str, options: dict[str, Any], trained: Trained
) -> None:
    torch.manual_seed(1)
    module = trained(kind, INPUTS, UNITS, **options)
    x = torch.randn(7, B, INPUTS, dtype=torch.float64)
    (reading,) = readings(module, x)
    replay = reading.replay()
    t, size = 4, reading.hidden.shape[-1] + (UNITS if kind == "LSTM" else 0)
    identity = torch.eye(size, dtype=torch.float64).expand(B, size, size)
    at = locals_of(replay, reading.site.kind)[t]
    found = advance(reading.site.kind, reading.weights, at, identity).transpose(1, 2)
    for sample in range(B):
        own = x[:t, sample : sample + 1]
        ends = module(own)[1]
        state = torch.cat(ends if isinstance(ends, tuple) else (ends,), -1).flatten().detach()
        expected = torch.func.jacrev(state_map(module, x[t, sample : sample + 1]))(state)
        torch.testing.assert_close(found[sample], expected, rtol=0, atol=1e-12)


def run(module: nn.RNNBase, x: Tensor, count: int, transient: float = 0.5) -> list[Spectrum]:
    generator = torch.Generator().manual_seed(0)
    return [
        spectrum(reading, reading.replay(), count, transient, generator)
        for reading in readings(module, x)
    ]


def log_moduli(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvals(matrix).abs().log().sort(descending=True)[0]


def test_a_linear_network_has_the_logarithms_of_its_eigenvalues() -> None:
    torch.manual_seed(3)
    # Nothing negative ever comes up, so that ReLU does nothing.
    rnn = nn.RNN(INPUTS, UNITS, nonlinearity="relu", bias=False).double()
    weights = torch.rand(UNITS, UNITS, dtype=torch.float64) * torch.tensor(
        [1.0, 0.2, 0.6, 0.1, 0.4]
    )
    rnn.weight_hh_l0.data.copy_(0.9 * weights / torch.linalg.eigvals(weights).abs().max())
    rnn.weight_ih_l0.data.abs_()
    (found,) = run(rnn, torch.rand(2000, B, INPUTS, dtype=torch.float64), 2)
    expected = log_moduli(rnn.weight_hh_l0.data)[:2]
    for sample in range(B):
        torch.testing.assert_close(found.exponents[sample], expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("layers", [1, 2])
def test_at_a_fixed_point_exponents_are_those_of_the_whole_jacobian(
    layers: int, trained: Trained
) -> None:
    """Of two layers, it is that of the stacked state, which is block triangular."""
    torch.manual_seed(0)
    module = trained("LSTM", INPUTS, UNITS, layers, scale=1.5)
    x = torch.randn(1, 1, INPUTS, dtype=torch.float64).expand(1500, 1, INPUTS).contiguous()
    found = torch.cat([one.exponents[0] for one in run(module, x, 2 * UNITS)])
    ends = module(x)[1]
    state = torch.cat(ends, -1).flatten().detach()
    expected = log_moduli(torch.func.jacrev(state_map(module, x[0]))(state))
    torch.testing.assert_close(found.sort(descending=True)[0][:8], expected[:8], rtol=0, atol=2e-3)


def test_a_driven_stack_has_the_exponents_of_its_layers(trained: Trained) -> None:
    torch.manual_seed(2)
    module, steps = trained("GRU", INPUTS, UNITS, 2, scale=1.5), 600
    x = torch.randn(steps, 1, INPUTS, dtype=torch.float64)
    found = torch.cat([one.exponents[0] for one in run(module, x, UNITS, 0.2)])
    state = torch.zeros(2 * UNITS, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(2 * UNITS, 2 * UNITS, dtype=torch.float64))[0]
    logs = []
    for x_BI in x:
        step = state_map(module, x_BI)
        jacobian = torch.func.jacrev(step)(state)
        state = step(state).detach()
        basis, upper = torch.linalg.qr(jacobian @ basis)
        logs.append(upper.diagonal().abs().log())
    expected = torch.stack(logs[steps // 5 :]).mean(0).sort(descending=True)[0]
    torch.testing.assert_close(found.sort(descending=True)[0], expected, rtol=0, atol=0.03)


def test_padding_and_the_transient_do_not_count(trained: Trained) -> None:
    torch.manual_seed(0)
    module, x = trained("GRU", INPUTS, UNITS), torch.randn(12, 1, INPUTS, dtype=torch.float64)
    (whole,) = readings(module, x)
    (part,) = readings(module, x[:8])
    whole.valid[8:] = False

    def exponents(reading: Reading) -> Spectrum:
        generator = torch.Generator().manual_seed(0)
        return spectrum(reading, reading.replay(), 3, 0.3, generator)

    found, expected = exponents(whole), exponents(part)
    assert found.steps.tolist() == expected.steps.tolist() == [5]  # 0.3 of 8 is skipped, rounded up
    torch.testing.assert_close(found.exponents, expected.exponents, rtol=0, atol=0)
    torch.testing.assert_close(found.first_half, expected.first_half, rtol=0, atol=0)
    assert (found.first_half != found.exponents).all()


def test_a_state_that_forgets_all_has_a_finite_exponent() -> None:
    rnn = nn.RNN(INPUTS, UNITS, nonlinearity="relu")
    rnn.bias_ih_l0.data.fill_(-100.0)
    (found,) = run(rnn, torch.randn(6, B, INPUTS), 2)
    assert (found.exponents < -80).all()
    assert found.exponents.isfinite().all()
