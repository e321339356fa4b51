"""How strongly the final state can depend on an earlier one: the largest singular value.

Random directions of the final state are pulled back to an earlier state and pushed forward again,
over and over (block power iteration), so that no Jacobian is formed, however wide the layers. Time
and the names are those of :mod:`probes.recurrent.reach.jacobian`.

Shapes: B sample, N lag (its place among those asked for), K lag, V direction, P hidden state,
S states of all layers together.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.special import betaincinv
from torch import Tensor
from torch.nn import functional

from probes.recurrent.reach.jacobian import Linearized, State, sized, step_back, zero_state
from probes.recurrent.reach.tangent import Local, advance

DIRECTIONS = 4
"""Directions that are followed together."""

TOLERANCE = 0.02
"""Share of the norm that may still be missing when an iteration ends, as far as can be told."""

LEAST, MOST = 2, 32
"""Iterations at a lag."""

STEPS = 800
"""Timesteps back that the iterations at one lag may take together, if they are more than 4."""

DOUBT = 0.001
"""Chance that a norm is larger than its upper end."""


class Largest(NamedTuple):
    """Natural logarithms of norms at the lags asked for."""

    norm: Tensor
    """The largest singular value found, never more than the norm: (B, N)."""
    missing: Tensor
    """What it is estimated to lack: (B, N); converged where that is up to ``TOLERANCE``."""
    margin: Tensor
    """What it lacks at most, but for a chance of ``DOUBT``: (B, N)."""


def spectral_norms(
    layers: Sequence[Linearized], lags: Sequence[int], generator: torch.Generator
) -> Largest:
    """Measure spectral norms of the derivative of the final hidden state by earlier states.

    That of the last layer is meant, by the states of all layers together.

    What a product with the Jacobian or its transpose adds shrinks at least about as fast as
    1 / number^2, however close the singular values are, so that what is missing is estimated as the
    gain of the last one times its number.
    That is the test of convergence; it is no bound. The margin is one: the directions at the start
    are random, so that they hold more than a known share of the singular vector but for a chance
    of ``DOUBT``, and what they grow by over all iterations says how large the norm can be.

    Parameters
    ----------
    layers : sequence of Linearized
        From the one that reads the input to the one whose final state is meant.
    lags : sequence of int
        Each once.
    generator : torch.Generator
        Of the directions at the start; on the CPU.

    References
    ----------
    .. [1] Halko, Martinsson and Tropp, Finding structure with randomness: probabilistic algorithms
       for constructing approximate matrix decompositions (2011).
    .. [2] Kuczynski and Wozniakowski, Estimating the largest eigenvalue by the power and Lanczos
       algorithms with a random start (1992), for the rate without a gap.
    .. [3] Dixon, Estimating extremal eigenvalues and condition numbers of matrices (1983), for the
       bound by the growth of a random start.
    """
    order = sorted(lags, reverse=True)
    samples, units = layers[-1].slopes.shape[1], layers[-1].weights.w_hh.shape[1]
    growth = _Growth.at_random(samples, len(order), units, generator)
    found: dict[int, Tensor] = {}
    before_BN = torch.full((samples, len(order)), -torch.inf, dtype=torch.float64)
    for number in range(1, MOST + 1):
        products = 2 * number - 1
        pulled_BNVS, log_BN = _pulled(layers, growth.rows, order)
        norm_BN = _log_norm(pulled_BNVS) + log_BN
        missing_BN = _difference(norm_BN, before_BN) * products
        upper_BN = (_log_norm(growth.factor @ pulled_BNVS) + log_BN + growth.log) / products
        margin_BN = _difference(upper_BN, norm_BN).clamp_min(0)
        parts_3BN = torch.stack([norm_BN, missing_BN.clamp_min(0), margin_BN])
        found |= dict(zip(order, parts_3BN.unbind(-1), strict=True))
        # What is not a number is not greater, and stays what it is.
        short_N = (missing_BN > (TOLERANCE if number >= LEAST else -torch.inf)).any(0).tolist()
        on = [place for place, lag in enumerate(order) if short_N[place] and number < _most(lag)]
        if not on:
            break
        order = [order[place] for place in on]
        growth = growth.only(on).by(pulled_BNVS[:, on], log_BN[:, on])
        pushed_BNVP, log_BN = _pushed(layers, growth.rows, order)
        before_BN = _log_norm(pushed_BNVP) + log_BN
        growth = growth.by(pushed_BNVP, log_BN)
    return Largest(*torch.stack([found[lag] for lag in lags], -1))


def _most(lag: int) -> int:
    """Say how many iterations are allowed at a lag."""
    return min(max(STEPS // max(lag, 1), 4), MOST)


class _Growth(NamedTuple):
    """Directions after products with the Jacobian and its transpose, and what they grew by.

    The directions at the start times these products are ``exp(log) * factor @ rows``, divided by
    the share of the singular vector that they are sure to hold.
    """

    rows: Tensor
    """Orthonormal: (B, N, V, P) or (B, N, V, S)."""
    factor: Tensor
    """Shape (B, N, V, V)."""
    log: Tensor
    """Shape (B, N)."""

    @classmethod
    def at_random(
        cls, samples: int, lags: int, units: int, generator: torch.Generator
    ) -> "_Growth":
        """Draw directions for every sample and lag."""
        count = min(DIRECTIONS, units)
        shape = samples, lags, units, count
        drawn = torch.randn(shape, dtype=torch.float64, generator=generator)
        eye_VV = torch.eye(count, dtype=torch.float64).expand(samples, lags, count, count)
        log_BN = torch.full((samples, lags), -_log_share(count, units), dtype=torch.float64)
        return cls(torch.linalg.qr(drawn).Q.mT, eye_VV, log_BN)

    def only(self, on: list[int]) -> "_Growth":
        """Go on with some of the lags."""
        return _Growth(*(part[:, on] for part in self))

    def by(self, product: Tensor, log_BN: Tensor) -> "_Growth":
        """Go on with a product of the rows, which is ``exp(log_BN)`` times ``product``."""
        q, r = torch.linalg.qr(product.mT)
        factor = self.factor @ r.mT
        size_BN = torch.linalg.matrix_norm(factor)
        factor = factor / sized(size_BN)[..., None, None]
        return _Growth(q.mT, factor, self.log + log_BN + size_BN.log())


def _log_share(count: int, units: int) -> float:
    """Logarithm of the length of a unit vector in random directions, but for a chance of DOUBT.

    The square of the length of its projection has a beta distribution.
    """
    if count == units:
        return 0.0
    return math.log(betaincinv(count / 2, (units - count) / 2, DOUBT)) / 2


def _pulled(
    layers: Sequence[Linearized], rows_BNVP: Tensor, lags: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Pull rows back to the states of all layers at each of the lags, longest first.

    Returned in float64, (B, N, V, S), to be multiplied by the exponential of (B, N).
    """
    like, count = layers[-1].slopes, rows_BNVP.shape[2]
    rows = rows_BNVP.flatten(1, 2).to(like)
    states = [zero_state(layer, rows) for layer in layers]
    states[-1] = State(rows, states[-1].cell)
    log_BN = rows.new_zeros(rows_BNVP.shape[:2], dtype=torch.float64)
    found: list[Tensor] = []
    logs: list[Tensor] = []
    for lag in range(lags[0] + 1):
        states, earlier, _ = step_back(layers, lag, states, inputs=False)
        left = len(lags) - len(found)
        if lag == lags[left - 1]:
            parts = [part[:, -count:] for state in states for part in state if part is not None]
            found.append(torch.cat(parts, -1))
            logs.append(log_BN[:, -1])
            left, log_BN = left - 1, log_BN[:, :-1]
        if left:
            states = [_first(state, left * count) for state in earlier]
            parts = [part for state in states for part in state if part is not None]
            log_BN = log_BN + _rescaled(parts, left)
    return torch.stack(found[::-1], 1).to("cpu", torch.float64), torch.stack(logs[::-1], 1).cpu()


def _pushed(
    layers: Sequence[Linearized], right_BNVS: Tensor, lags: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Push changes of the states of all layers at each lag to the final hidden state.

    Returned as by :func:`_pulled`: (B, N, V, P) and (B, N).
    """
    like, count = layers[-1].slopes, right_BNVS.shape[2]
    own = torch.split(right_BNVS.to(like), [_size(layer) for layer in layers], -1)
    states = [part[:, 0, :0] for part in own]
    log_BN = like.new_zeros(len(right_BNVS), 0, dtype=torch.float64)
    for lag in reversed(range(lags[0] + 1)):
        begun = log_BN.shape[1]
        begins = begun < len(lags) and lag == lags[begun]
        if begins:
            states = [functional.pad(state, (0, 0, 0, count)) for state in states]
            log_BN = functional.pad(log_BN, (0, 1))
        x_BVI: Tensor | None = None
        for place, layer in enumerate(layers):
            states[place] = advance(
                layer.kind, layer.weights, _local(layer, lag), states[place], x_BVI
            )
            if begins:
                states[place][:, -count:] += own[place][:, begun]
            x_BVI = states[place][..., : layer.weights.w_hh.shape[1]]
        log_BN = log_BN + _rescaled(states, log_BN.shape[1])
    final = states[-1][..., : layers[-1].weights.w_hh.shape[1]]
    shape = len(right_BNVS), len(lags), count, -1
    return final.reshape(shape).to("cpu", torch.float64), log_BN.cpu()


def _first(state: State, rows: int) -> State:
    """Keep the first rows."""
    return State(state.hidden[:, :rows], None if state.cell is None else state.cell[:, :rows])


def _local(layer: Linearized, lag: int) -> Local:
    """Local derivatives at one lag."""
    carry, through = (
        None if values is None else values[lag] for values in (layer.carry, layer.through)
    )
    return Local(layer.slopes[lag], carry, through)


def _size(layer: Linearized) -> int:
    """Size of the whole state of a layer."""
    cells = layer.slopes.shape[-1] if layer.kind == "lstm" else 0
    return layer.weights.w_hh.shape[1] + cells


def _rescaled(parts: Sequence[Tensor], blocks: int) -> Tensor:
    """Divide (B, N * V, any) by the norm of every block, in place; its logarithm: (B, N)."""
    blocked = [part.view(len(part), blocks, -1, part.shape[-1]) for part in parts]
    norms = [torch.linalg.vector_norm(part, dim=(2, 3), dtype=torch.float64) for part in blocked]
    size_BN = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    size_BN = sized(size_BN)
    for part in blocked:
        part.div_(size_BN[..., None, None].to(part.dtype))
    return size_BN.log()


def _log_norm(rows_BNVS: Tensor) -> Tensor:
    """Logarithm of the largest singular value: (B, N); nan of nan."""
    gram_BNVV = rows_BNVS @ rows_BNVS.mT
    # LAPACK fails on the whole batch for one sample.
    finite_BN = gram_BNVV.isfinite().flatten(2).all(2)
    values_BNV = torch.linalg.eigvalsh(gram_BNVV.where(finite_BN[..., None, None], 0))
    logs_BN: Tensor = values_BNV[..., -1].clamp_min(0).log().where(finite_BN, torch.nan) / 2
    return logs_BN


def _difference(larger_BN: Tensor, smaller_BN: Tensor) -> Tensor:
    """Difference of logarithms; zero between two of nothing."""
    return torch.where(larger_BN == smaller_BN, 0.0, larger_BN - smaller_BN)
