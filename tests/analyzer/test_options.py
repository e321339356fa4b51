"""Flags and audit.toml: flags win, relative paths start at the file, unknown keys are errors."""

from pathlib import Path

import pytest

from analyzer.options import Options, limits_of, literal, pairs, read_toml
from probes.errors import AnalyzerError

TOML = """
[subject]
checkpoint = "best.pt"
model = "net.py:Net"
model_args = {hidden = 64, name = "a"}
data = "beats.npz"
loss = "cross_entropy"
seed = 3

[probes]
run = ["gradient_flow", "memory_horizon"]
memory_horizon = {points = 12}

[limits.memory_horizon]
required = 100

[output]
directory = "out"
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    for name in ("net.py", "beats.npz"):
        (tmp_path / name).write_text("")
    path = tmp_path / "audit.toml"
    path.write_text(TOML)
    return path


def test_a_toml_file_alone(spec):
    options = Options.of({"spec": spec})
    assert options.spec.checkpoint == spec.parent / "best.pt"
    assert options.spec.model == f"{spec.parent / 'net.py'}:Net"
    assert options.spec.data == f"{spec.parent / 'beats.npz'}"
    assert options.spec.loss == "cross_entropy"
    assert options.spec.model_args == {"hidden": 64, "name": "a"}
    assert options.probes == ["gradient_flow", "memory_horizon"]
    assert options.settings == {"memory_horizon": {"points": 12}}
    assert options.limits.memory_horizon.required == 100
    assert options.out == spec.parent / "out"


def test_flags_win_over_the_file(spec):
    flags = {
        "spec": spec,
        "checkpoint": Path("other.pt"),
        "loss": "mse_loss",
        "seed": 0,
        "model_arg": ["hidden=32"],
        "probe": ["width"],
        "setting": ["memory_horizon.points=6"],
        "limit": ["memory_horizon.required=7.5"],
        "out": Path("here"),
        "output": "0",
    }
    options = Options.of(flags)
    assert options.spec.checkpoint == Path("other.pt")
    assert options.spec.loss == "mse_loss"
    assert options.spec.seed == 0
    assert options.spec.model_args == {"hidden": 32, "name": "a"}
    assert options.spec.output == 0
    assert options.probes == ["width"]
    assert options.settings == {"memory_horizon": {"points": 6}}
    assert options.limits.memory_horizon.required == 7.5
    assert options.out == Path("here")


def test_flags_alone():
    options = Options.of({"model": "m:f", "data": "d:f", "allow_global": ["a.B"]})
    assert (options.spec.model, options.spec.data) == ("m:f", "d:f")
    assert options.spec.allow_global == ("a.B",)
    assert options.out == Path("audit")
    assert options.probes is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", False),
        ("(1, 2)", (1, 2)),
        ("gru", "gru"),
    ],
)
def test_values_of_flags(text, value):
    assert literal(text) == value
    assert type(literal(text)) is type(value)


@pytest.mark.parametrize("text", ["a=1", "a.b", ".b=1", "a.=1"])
def test_what_is_no_pair_is_refused(text):
    with pytest.raises(AnalyzerError) as raised:
        pairs([text], "--limit group.name=number")
    assert str(raised.value) == f"{text!r} is not of the form --limit group.name=number"


def test_unknown_keys_are_named_with_the_nearest_known(tmp_path):
    path = tmp_path / "audit.toml"
    path.write_text("[subject]\ncheckpont = 'a.pt'\n")
    with pytest.raises(AnalyzerError) as raised:
        Options.of({"spec": path})
    assert str(raised.value) == "unknown key in [subject] 'checkpont': did you mean checkpoint?"


def test_unknown_tables_are_named(tmp_path):
    path = tmp_path / "audit.toml"
    path.write_text("[subjects]\n")
    with pytest.raises(AnalyzerError) as raised:
        read_toml(path)
    assert str(raised.value) == f"unknown table in {path} 'subjects': did you mean subject?"


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "none.toml"
    with pytest.raises(AnalyzerError) as raised:
        read_toml(path)
    assert str(raised.value) == f"{path}: No such file or directory"


def test_a_file_that_is_not_toml_is_named(tmp_path):
    path = tmp_path / "audit.toml"
    path.write_text("[subject\n")
    with pytest.raises(AnalyzerError, match=r"audit\.toml: not TOML: Expected"):
        read_toml(path)


def test_limits_from_flags_and_tables():
    limits = limits_of(
        {"limits": {"gradient_flow": {"warn_decades": 1}}}, ["gradient_flow.fail_decades=9"]
    )
    assert (limits.gradient_flow.warn_decades, limits.gradient_flow.fail_decades) == (1, 9)


def test_copies_come_from_the_file_or_the_flag(spec):
    assert Options.of({"spec": spec}).null_seeds is None
    spec.write_text(TOML.replace("[probes]", "[probes]\nnull_seeds = 5"))
    assert Options.of({"spec": spec}).null_seeds == 5
    assert Options.of({"spec": spec}).settings == {"memory_horizon": {"points": 12}}
    assert Options.of({"spec": spec, "null_seeds": 0}).null_seeds == 0


@pytest.mark.parametrize("value", ["-1", "2.5", "true", "'3'"])
def test_copies_are_a_whole_number(spec, value):
    spec.write_text(TOML.replace("[probes]", f"[probes]\nnull_seeds = {value}"))
    with pytest.raises(AnalyzerError) as raised:
        Options.of({"spec": spec})
    shown = {"true": "True"}.get(value, value)
    assert str(raised.value) == (
        f"null_seeds in [probes] is a whole number from 0 on: it is {shown}"
    )
