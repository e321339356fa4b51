"""Documents against their schemas."""

import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import jsonschema
import pytest
import tomli_w

from analyzer import schemas
from analyzer.findings import Finding, Severity, to_json
from analyzer.limits import Limits
from analyzer.options import Options, read_toml

FINDING = Finding("c", "p", Severity.WARN, "title", "seen", value=1.5, low=nan, where=("a.b",))


@pytest.fixture(scope="module")
def document():
    limits = Limits.of({"memory_horizon": {"required": 20}}).table()
    return json.loads(to_json([FINDING, replace(FINDING, value=inf)], {"samples": 3}, limits))


def test_the_schemas_are_schemas():
    for schema in (schemas.findings(), schemas.spec()):
        jsonschema.Draft202012Validator.check_schema(schema)


def test_findings_fit_their_schema(document):
    jsonschema.validate(document, schemas.findings())


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("verdict"),
        lambda d: d["findings"][0].pop("limit"),
        lambda d: d["findings"][0].update(severity="BAD"),
        lambda d: d["findings"][0].update(value="1.5"),
        lambda d: d["findings"][0].update(new=1),
        lambda d: d["limits"]["memory_horizon.share"].pop("source"),
        lambda d: d.update(schema=99),
    ],
)
def test_other_documents_do_not_fit(document, change):
    changed = json.loads(json.dumps(document))
    change(changed)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed, schemas.findings())


def test_a_printed_request_fits_its_schema_and_reads_as_the_same(tmp_path):
    flags = {
        "checkpoint": Path("best.pt"),
        "model": "net.py:Net",
        "model_arg": ["hidden=64", "name=a b"],
        "data": "data.npz",
        "setting": ["memory_horizon.points=12"],
        "probe": ["memory_horizon"],
        "limit": ["memory_horizon.required=20"],
        "fail_on": "warn",
        "junit": True,
        "null_seeds": 4,
        "out": Path("there"),
    }
    first = Options.of(flags)
    path = tmp_path / "audit.toml"
    path.write_text(tomli_w.dumps(first.tables()))
    jsonschema.validate(read_toml(path), schemas.spec())
    second = Options.of({"spec": path})
    assert second.spec == replace(first.spec, checkpoint=tmp_path / "best.pt")
    assert replace(second, spec=first.spec, out=first.out) == first
    assert second.out == tmp_path / "there"


def test_unknown_keys_of_a_request_do_not_fit():
    for tables in (
        {"subject": {"modle": "x"}},
        {"probes": {"gradient_flow": {"no": 1}}},
        {"limits": {"memory_horizon": {"required": "long"}}},
        {"output": {"fail_on": "sometimes"}},
        {"probes": {"null_seeds": -1}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(tables, schemas.spec())
