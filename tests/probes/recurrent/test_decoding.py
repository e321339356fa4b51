"""Capacities that are known, and every readout against one fitted on its own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from probes.recurrent.states import decoding
from probes.recurrent.states.decoding import Decoded, Sequences, decode
from probes.recurrent.states.novelty import novelty, principal

T, B = 700, 12


def inputs(correlation: float, size: int = 1, timesteps: int = T) -> Tensor:
    """Gaussian numbers whose neighbours in time have a correlation: (T, B, D)."""
    noise = torch.randn(timesteps, B, size, dtype=torch.float64)
    values = [noise[0]]
    for fresh in noise[1:]:
        values.append(correlation * values[-1] + (1 - correlation**2) ** 0.5 * fresh)
    return torch.stack(values)


def delayed(x: Tensor, steps: int) -> Tensor:
    return torch.cat([torch.zeros_like(x[:steps]), x[: len(x) - steps]])


def line(x: Tensor, units: int) -> Tensor:
    """A delay line: unit ``k`` holds the input ``k`` steps back."""
    return torch.cat([delayed(x, steps) for steps in range(units)], 2)


def reservoir(x: Tensor, units: int) -> Tensor:
    """A linear one with an orthogonal matrix, which forgets a tenth with every step."""
    turn = 0.9 * torch.linalg.qr(torch.randn(units, units, dtype=torch.float64))[0]
    into = torch.randn(x.shape[2], units, dtype=torch.float64)
    state, states = torch.zeros(B, units, dtype=torch.float64), []
    for x_BD in x:
        state = state @ turn.t() + x_BD @ into
        states.append(state)
    return torch.stack(states)


def decoded(states: Tensor, x: Tensor, lags: int = 20, **options: Any) -> Decoded:
    valid = torch.ones(x.shape[:2], dtype=torch.bool)
    components, _ = principal(x, valid, options.get("components", 4))
    return decode(Sequences(states, components, valid), lags, torch.Generator().manual_seed(0))


def shares(found: Decoded, part: str) -> Tensor:
    energy, error = (getattr(found, f"{part}_{kind}").sum(0) for kind in ("energy", "error"))
    return 1 - error / energy


def capacity(found: Decoded) -> float:
    return float((shares(found, "new").nan_to_num() * found.new_numbers).sum())


@pytest.mark.parametrize("correlation", [0.0, 0.95])
def test_a_delay_line_holds_exactly_its_length(correlation: float) -> None:
    torch.manual_seed(0)
    x = inputs(correlation)
    found = decoded(line(x, 7), x)
    assert capacity(found) == pytest.approx(7, abs=0.01)
    torch.testing.assert_close(
        shares(found, "new")[:8], torch.tensor([1.0] * 7 + [0.0]).double(), rtol=0, atol=0.01
    )
    # Told by the neighbours alone, without any memory of it.
    assert float(shares(found, "past")[8]) == pytest.approx(correlation**4, abs=0.03)


def test_a_delay_line_of_vectors_holds_all_their_numbers() -> None:
    torch.manual_seed(0)
    x = inputs(0.8, 3)
    found = decoded(line(x, 5), x)
    assert capacity(found) == pytest.approx(15, abs=0.05)
    assert found.new_numbers.tolist() == [3.0] * 21


@pytest.mark.parametrize("correlation", [0.0, 0.95])
def test_a_linear_reservoir_holds_as_many_numbers_as_units(correlation: float) -> None:
    torch.manual_seed(0)
    x = inputs(correlation)
    assert capacity(decoded(reservoir(x, 20), x, 80)) == pytest.approx(20, abs=0.6)


def test_a_state_without_memory_holds_the_present_alone() -> None:
    torch.manual_seed(0)
    x = inputs(0.95)
    found = decoded(x @ torch.randn(1, 5).double(), x)
    assert capacity(found) == pytest.approx(1, abs=0.01)
    past = shares(found, "past")
    assert float(past.sum()) > 8
    present = 1 - found.present_error.sum(0) / found.past_energy.sum(0)
    torch.testing.assert_close(past, present, rtol=0, atol=0.02)


def test_what_has_nothing_to_do_with_the_input_holds_nothing() -> None:
    torch.manual_seed(0)
    x = inputs(0.5, timesteps=60)
    found = decoded(torch.randn(60, B, 40, dtype=torch.float64), x)
    # Fitted and tested on the same sequences it would be above 2.
    assert abs(capacity(found)) < 0.4


def test_what_never_changes_is_new_only_once() -> None:
    torch.manual_seed(0)
    x = inputs(0.0, timesteps=1).expand(30, B, 1).contiguous()
    noisy = x + 0.1 * torch.randn(30, B, 1, dtype=torch.float64)
    found = decoded(noisy, x, 10)
    assert found.new_numbers.tolist() == [1.0] + [0.0] * 10
    assert float(found.new_energy[:, 1:].abs().max()) == 0
    assert 0.5 < capacity(found) < 1
    still = torch.ones(30, B, 2, dtype=torch.float64)
    assert principal(still, torch.ones(30, B, dtype=torch.bool), 4)[0].shape == (30, B, 0)


def test_every_readout_is_the_ridge_regression_of_its_lag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    ridge, lags = 1e-3, 6
    monkeypatch.setattr(decoding, "RIDGES", (ridge,))
    x = inputs(0.7, 2, 40)
    # Units enough for every lag to be worth a readout.
    states = torch.tanh(0.3 * reservoir(x, 16))
    found = decoded(states, x, lags)
    components, _ = principal(x, torch.ones(40, B, dtype=torch.bool), 4)
    halves = torch.randperm(B, generator=torch.Generator().manual_seed(0)).chunk(2)
    for own, other in (halves, halves[::-1]):
        h, z = (values - values[:, own].mean(1, keepdim=True) for values in (states, components))
        for lag in range(lags + 1):
            rows = {"past": z[lags - lag : 40 - lag]}
            window = torch.cat([z[lags - k : 40 - k] for k in range(lag + 1)], 2)
            rows["new"] = residual(window, own, 2)
            for part, target in rows.items():
                weights = regression(h[lags:, own], target[:, own], ridge)
                missed = target[:, other] - h[lags:, other] @ weights
                for kind, values in (("error", missed), ("energy", target[:, other])):
                    sums = values.square().sum((0, 2))
                    measured = getattr(found, f"{part}_{kind}")[other, lag]
                    torch.testing.assert_close(measured, sums, rtol=1e-5, atol=1e-8)


def residual(window: Tensor, own: Tensor, size: int) -> Tensor:
    """Oldest inputs of a window less what the newer ones tell, with unit covariance in ``own``."""
    newer, oldest = window[..., :-size], window[..., -size:]
    fitted = newer[:, own].flatten(0, 1)
    if fitted.shape[1]:
        weights = torch.linalg.lstsq(fitted, oldest[:, own].flatten(0, 1)).solution
        oldest = oldest - newer @ weights
    rows = oldest[:, own].flatten(0, 1)
    factor = torch.linalg.cholesky(rows.t() @ rows / len(rows))
    white = torch.linalg.solve_triangular(factor, oldest.flatten(0, 1).t(), upper=False).t()
    return white.reshape(oldest.shape)


def regression(states: Tensor, target: Tensor, ridge: float) -> Tensor:
    rows, wanted = states.flatten(0, 1), target.flatten(0, 1)
    gram = rows.t() @ rows
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(gram, rows.t() @ wanted)


def test_padding_does_not_count() -> None:
    torch.manual_seed(0)
    x = inputs(0.6, timesteps=50)
    states = line(x, 3)
    valid = torch.ones(50, B, dtype=torch.bool)
    valid[40:] = False
    ragged = decode(Sequences(states, x, valid), 5, torch.Generator().manual_seed(0))
    cut = Sequences(states[:40], x[:40], valid[:40])
    whole = decode(cut, 5, torch.Generator().manual_seed(0))
    assert ragged.rows == whole.rows == 35 * B // 2
    for one, other in zip(ragged[:6], whole[:6], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    valid[30:, 0] = False
    shorter = decode(Sequences(states, x, valid), 5, torch.Generator().manual_seed(0))
    assert float(shorter.past_energy[0, 0]) < float(ragged.past_energy[0, 0])


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = inputs(0.6, 2, 40)
    whole = decoded(line(x, 3), x, 8)
    monkeypatch.setattr(decoding, "CHUNK", 1)
    monkeypatch.setattr(decoding, "BLOCK", 2)
    for one, other in zip(decoded(line(x, 3), x, 8)[:6], whole[:6], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_components_are_those_of_most_variance() -> None:
    torch.manual_seed(0)
    x = inputs(0.0, 3, 200) * torch.tensor([3.0, 1.0, 0.1]).double()
    found, share = principal(x, torch.ones(200, B, dtype=torch.bool), 2)
    assert found.shape == (200, B, 2)
    assert share == pytest.approx(10 / 10.01, abs=1e-3)
    centred = found - found.mean(1, keepdim=True)
    rows = centred.flatten(0, 1)
    torch.testing.assert_close(rows.t() @ rows / len(rows), torch.eye(2).double())
    largest = (x - x.mean(1, keepdim=True))[..., 0].flatten()
    correlation = torch.corrcoef(torch.stack([rows[:, 0], largest]))[0, 1]
    assert abs(float(correlation)) > 0.999


def test_the_new_part_is_white() -> None:
    torch.manual_seed(0)
    x = inputs(0.9, timesteps=400)[..., 0].t()
    rows = torch.cat([x[:, 8 - k : 400 - k].reshape(-1, 1) for k in range(9)], 1)
    found = novelty(rows.t() @ rows, len(rows), 8, 1)
    new = rows @ found.whole()
    torch.testing.assert_close(new.t() @ new / len(new), torch.eye(9).double(), rtol=0, atol=1e-6)
