"""Measurements of several batches and layers as tables.

Shapes: B sample of all batches, L layer, ... whatever is measured of one sample in one layer.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probes.base import Progress, Subject
from probes.errors import AnalyzerError
from probes.model.taps import untouched
from probes.recurrent.backward.record import Site
from probes.recurrent.watching.reading import Reading
from probes.recurrent.watching.watch import Read, first_samples, read

Measure = Callable[[Reading], Mapping[str, Tensor]]
"""What is measured of one layer: name -> values, one row per row of the reading."""


@dataclass
class Tables:
    """What was measured of every layer, batch after batch.

    Attributes
    ----------
    samples : list of int
        Of every batch.
    units : dict
        Size of the hidden state of every layer that was measured, in the order of running.
    remarks : dict
        Attributes of a trace: layers that were not measured, and why.
    """

    samples: list[int] = field(default_factory=list)
    units: dict[Site, int] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    _parts: list[dict[str, dict[Site, Tensor]]] = field(default_factory=list)

    def add(self, found: Read, measure: Measure) -> None:
        """Measure what was read of one batch; the rows of a batch of one sample are averaged."""
        part: dict[str, dict[Site, Tensor]] = {}
        for reading in found.readings:
            self.units.setdefault(reading.site, reading.hidden.shape[-1])
            for name, values in measure(reading).items():
                own = values.double().cpu()
                if len(own) != found.samples:
                    own = own.mean(0, keepdim=True)
                part.setdefault(name, {})[reading.site] = own
        self._parts.append(part)
        self.samples.append(found.samples)
        for remark, names in (
            ("not_called", found.not_called),
            ("not_per_sample", found.not_per_sample),
        ):
            before = self.remarks.get(remark, "")
            self.remarks[remark] = joined([*filter(None, before.split(", ")), *names])

    def table(self, name: str) -> Tensor:
        """Join one measurement: (B, L, ...), nan where a layer has none, or fewer than another."""
        sites = list(self.units)
        found = [value for part in self._parts for value in part[name].values()]
        shape = torch.tensor([value.shape[1:] for value in found]).amax(0).tolist()
        tables = []
        for samples, part in zip(self.samples, self._parts, strict=True):
            table = torch.full((samples, len(sites), *map(int, shape)), torch.nan).double()
            for site, value in part[name].items():
                own = table[:, sites.index(site)]
                own[tuple(slice(0, size) for size in value.shape)] = value
            tables.append(table)
        return torch.cat(tables)

    def worst(self, name: str) -> float:
        """Return the largest value of one measurement; nan where there is none."""
        values = self.table(name)
        known = values[~values.isnan()]
        return float(known.max()) if known.numel() else float("nan")

    def coordinates(self) -> dict[str, Any]:
        """Label layers: name, kind, size of the hidden state, and direction."""
        return coordinates(self.units)


def measured(subject: Subject, samples: int, measure: Measure, progress: Progress) -> Tables:
    """Measure every recurrent layer on the first samples of a subject.

    Raises
    ------
    AnalyzerError
        There are no batches.
    """
    tables = Tables()
    for batch in first_samples(subject, samples):
        with untouched(subject.model):
            tables.add(read(subject, batch).first(samples - sum(tables.samples)), measure)
        progress(sum(tables.samples), samples)
    if not tables.samples:
        raise AnalyzerError("there are no batches to measure with")
    return tables


def coordinates(units: Mapping[Site, int]) -> dict[str, Any]:
    """Label layers: name, kind, size of the hidden state, and direction."""
    return {
        "layer": [site.label for site in units],
        "kind": ("layer", [site.kind.partition("_")[0].upper() for site in units]),
        "units": ("layer", list(units.values())),
        "direction": ("layer", ["reverse" if site.reverse else "forward" for site in units]),
    }


def joined(names: Iterable[str]) -> str:
    """Write names once each, in their order, as an attribute."""
    return ", ".join(dict.fromkeys(names))
