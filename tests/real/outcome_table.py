"""Audit every real network and write down what each probe made of it.

    python tests/real/outcome_table.py

writes ``outcomes.json`` beside this file, which the tests hold every audit to, and
``docs/real_networks.md``, which people read. Name networks to audit these alone.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from real_networks import NETWORKS, Network, missing, spec_of
from reported import Reported, reported

import analyzer
from analyzer.findings import Severity, verdict

HERE = Path(__file__).parent
OUTCOMES = HERE / "outcomes.json"
DOCUMENT = HERE.parents[1] / "docs" / "real_networks.md"

Row = dict[str, Any]
"""What is known of one network: facts, outcome and findings of every probe."""

MARKS = {"measured": "yes", "not_applicable": "-", "error": "ERROR"}


def audited(network: Network, folder: Path) -> Reported:
    """Load a network as a user does, and audit it with every probe."""
    loaded = analyzer.load_subject(spec_of(network))
    return reported(loaded.subject, folder, provenance=loaded.provenance)


def row(network: Network, found: Reported) -> Row:
    """Take down what the audit of one network came to."""
    facts = found.record.attrs
    worst = [f for f in found.findings if f.severity in (Severity.FAIL, Severity.WARN)]
    told = [*worst, *found.of("reach")]
    return {
        "packages": [*network.packages.values()],
        "parameters": int(facts["parameters"]),
        "samples": int(facts["samples"]),
        "verdict": str(verdict(found.findings)),
        "pages": len(found.pdf),
        "outcomes": found.outcomes(),
        "found": [f"{finding.severity}: {finding.message}" for finding in told],
    }


def document(rows: dict[str, Row]) -> str:
    """Write the table for people."""
    return "\n".join([*_HEAD, *_matrix(rows), *_reasons(rows), *_told(rows)]) + "\n"


_HEAD = [
    "# Real networks",
    "",
    "Networks trained by others, whose weights ship inside packages, audited with every probe and",
    "real or realistic data. Written by `python tests/real/outcome_table.py`; held to by",
    "`pytest -m real` (how to install the packages: [tests/real](../tests/real/README.md)).",
    "",
]


_FACTS = ("parameters", "samples", "verdict")


def _matrix(rows: dict[str, Row]) -> list[str]:
    """One line per probe, one column per network."""
    lines = [
        f"| probe | {' | '.join(rows)} |",
        f"|---|{'---|' * len(rows)}",
        *(f"| {fact} | {' | '.join(str(one[fact]) for one in rows.values())} |" for fact in _FACTS),
    ]
    for probe in dict.fromkeys(probe for one in rows.values() for probe in one["outcomes"]):
        outcomes = [one["outcomes"].get(probe, "").partition(":")[0] for one in rows.values()]
        marks = " | ".join(MARKS.get(outcome, "?") for outcome in outcomes)
        lines.append(f"| `{probe}` | {marks} |")
    return [*lines, "", f"`{MARKS['not_applicable']}`: does not apply, for the reason below.", ""]


def _reasons(rows: dict[str, Row]) -> list[str]:
    """Say why what was not measured was not: each reason once."""
    found: dict[str, dict[str, list[str]]] = {}
    for network, one in rows.items():
        for probe, outcome in one["outcomes"].items():
            kind, _, reason = outcome.partition(": ")
            if kind != "measured":
                found.setdefault(reason, {}).setdefault(probe, []).append(network)
    lines = ["## Why not", ""]
    for reason, probes in sorted(found.items()):
        where = "; ".join(f"`{p}` on {', '.join(networks)}" for p, networks in probes.items())
        lines.append(f"- {reason}: {where}.")
    return [*lines, ""]


def _told(rows: dict[str, Row]) -> list[str]:
    """Say what was found in each network."""
    lines = ["## What was found", ""]
    for network, one in rows.items():
        lines += [f"**{network}** ({', '.join(one['packages'])})", ""]
        lines += [*(f"- {sentence}" for sentence in one["found"]), ""]
    return lines[:-1]


def main() -> None:
    """Audit the networks named, or all, and write both files."""
    rows: dict[str, Row] = {}
    if OUTCOMES.exists():
        rows = json.loads(OUTCOMES.read_text(encoding="utf-8"))
    for name in sys.argv[1:] or NETWORKS:
        network = NETWORKS[name]
        if absent := missing(network):
            sys.exit(f"{name}: {absent}")
        with TemporaryDirectory() as folder:
            rows[name] = row(network, audited(network, Path(folder)))
        print(f"{name}: {rows[name]['verdict']}", flush=True)  # noqa: T201
    ordered = {name: rows[name] for name in NETWORKS if name in rows}
    OUTCOMES.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    DOCUMENT.write_text(document(ordered), encoding="utf-8")


if __name__ == "__main__":
    main()
