"""Parts of a model without which the loss stays what it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan

import numpy as np
import xarray as xr

from analyzer.findings import Severity
from analyzer.rules.verdicts import Estimate, at_least, listed
from analyzer.statistics import bootstrap_interval


def shares(change: xr.DataArray, loss: xr.DataArray) -> list[Estimate]:
    """Mean change of the loss without each part, as a share of the mean intact loss.

    Parameters
    ----------
    change : DataArray
        Dimension "sample" and one more; nan where a part was not left out.
    loss : DataArray
        Intact loss of each sample.

    Returns
    -------
    list of Estimate
        Of each part, with the interval over samples drawn as pairs; nan where it was not left
        out, or the mean loss is not above zero, so that a share of it means nothing.
    """
    (part,) = (dim for dim in change.dims if dim != "sample")
    values = change.transpose("sample", part).to_numpy()
    table = np.column_stack([values, loss.to_numpy()])
    measured = ~np.isnan(values).all(0)
    rows = table[~np.isnan(values[:, measured]).any(1)][:, [*measured, True]]
    found = [Estimate()] * values.shape[1]
    if not measured.any() or not len(rows) or not rows[:, -1].mean() > 0:
        return found
    value, (low, high) = _share(rows, axis=0), bootstrap_interval(rows, _share)
    for place, at in enumerate(np.flatnonzero(measured)):
        ends = float(low[place]), float(high[place])
        found[at] = Estimate(float(value[place]), *ends, len(rows))
    return found


def _share(rows: np.ndarray, axis: int) -> np.ndarray:
    """Mean of every column as a share of the mean of the last one."""
    means = rows.mean(axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(means[..., :-1] / means[..., -1:])


@dataclass(frozen=True)
class Verdict:
    """What a limit on the shares of all parts says.

    Parameters
    ----------
    severity : Severity
        WARN if a part is idle for certain, INCONCLUSIVE if one may be, else PASS.
    estimate : Estimate
        Of the part that decides: the one worth least among those named.
    named : tuple of str
        Parts that are idle, or may be.
    """

    severity: Severity
    estimate: Estimate
    named: tuple[str, ...]


def judged(parts: Mapping[str, Estimate], limit: float, min_samples: float) -> Verdict:
    """Hold the share of every part that was left out against a limit."""
    known = {name: part for name, part in parts.items() if not isnan(part.value)}
    if not known:
        return Verdict(Severity.INCONCLUSIVE, Estimate(), ())
    severities = {name: at_least(part, limit) for name, part in known.items()}
    if next(iter(known.values())).samples < min_samples:
        severities = {
            name: word if word is Severity.PASS else Severity.INCONCLUSIVE
            for name, word in severities.items()
        }
    worst = min(severities.values(), key=lambda word: word.rank)
    named = [name for name, word in severities.items() if word is worst]
    estimate = min((known[name] for name in named), key=lambda part: part.value)
    return Verdict(worst, estimate, () if worst is Severity.PASS else tuple(named))


def described(parts: Mapping[str, Estimate], names: Sequence[str], most: int = 4) -> str:
    """Name parts with their shares."""
    texts = [f"{name} ({_percent(parts[name].value)})" for name in names[:most]]
    return listed([*texts, *names[most:]], most)


def _percent(share: float) -> str:
    """Write a share with two digits or as whole percents."""
    return f"{100 * share:+.0f} %" if abs(share) >= 0.1 else f"{100 * share:+.2g} %"


ranks = partial(np.argsort, kind="stable")


def rank_correlation(values: np.ndarray, axis: int) -> np.ndarray:
    """Spearman's correlation of two quantities of every part, each averaged over samples.

    Parameters
    ----------
    values : ndarray, shape (..., sample, ..., 2, part)
        Both quantities.
    axis : int
        Of the samples.
    """
    means = values.mean(axis)
    places = ranks(ranks(means, axis=-1), axis=-1).astype(float)
    centred = places - places.mean(-1, keepdims=True)
    crossed = (centred[..., 0, :] * centred[..., 1, :]).sum(-1)
    return np.asarray(crossed / (centred[..., 0, :] ** 2).sum(-1))
