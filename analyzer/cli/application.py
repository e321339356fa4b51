"""The application that the commands register with, and the flags that several of them take."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from analyzer.findings import FailOn

app = typer.Typer(
    help="Gradient and memory diagnostics of trained PyTorch checkpoints.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)

Command = Callable[..., None]

SpecFile = Annotated[Path | None, typer.Option("--spec", help="audit.toml; flags override it.")]
Limit = Annotated[list[str] | None, typer.Option(help="group.name=number; repeatable.")]
FailOnFlag = Annotated[
    FailOn | None, typer.Option("--fail-on", help="Exit with 1 from this severity on.")
]
Baseline = Annotated[
    Path | None,
    typer.Option(help="Earlier traces.nc: exit with 1 only for what got worse since."),
]
Junit = Annotated[bool, typer.Option("--junit", help="Also write junit.xml.")]
Markdown = Annotated[bool, typer.Option("--summary", help="Also write summary.md.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
AllowGlobal = Annotated[
    list[str] | None, typer.Option(help="Python name the checkpoint may import; repeatable.")
]
Trust = Annotated[bool, typer.Option(help="Execute whatever code the checkpoint holds.")]
StateKey = Annotated[str, typer.Option(help="Where in the file the weights are.")]
Traces = Annotated[Path, typer.Argument(help="traces.nc, written by measure or audit.")]


def subject_flags(
    spec: SpecFile = None,
    model: Annotated[str, typer.Option(help="package.module:callable or file.py:callable.")] = "",
    model_arg: Annotated[
        list[str] | None, typer.Option(help="key=value for the model's callable; repeatable.")
    ] = None,
    data: Annotated[
        str, typer.Option(help=".npz/.pt/.safetensors file, or a callable of batches.")
    ] = "",
    held_out: Annotated[
        str, typer.Option(help="Data the model was not trained on, where --data are training data.")
    ] = "",
    trained_on: Annotated[
        str, typer.Option(help="Data the model was trained on, where --data are not.")
    ] = "",
    loss: Annotated[str, typer.Option(help="Loss of torch.nn.functional, or a callable.")] = "",
    output: Annotated[
        str, typer.Option(help="Part of the model's outputs that is the prediction.")
    ] = "",
    batch_size: Annotated[
        int | None, typer.Option(help="Samples that go through together.", min=1)
    ] = None,
    max_samples: Annotated[
        int | None, typer.Option(help="Use at most this many samples.", min=1)
    ] = None,
    batch_axis: Annotated[
        int | None, typer.Option(help="Axis of the samples in the inputs.", min=0)
    ] = None,
    time_axis: Annotated[
        int | None, typer.Option(help="Axis of time in the inputs.", min=0)
    ] = None,
    sample_rate: Annotated[
        float | None, typer.Option(help="Timesteps per second [Hz].", min=0)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random choice.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "",
    allow_global: AllowGlobal = None,
    trust_checkpoint: Trust = False,
    allow_partial: Annotated[
        bool, typer.Option(help="Go on although keys are missing or left over.")
    ] = False,
    state_key: StateKey = "",
    probe: Annotated[
        list[str] | None, typer.Option("--probe", help="Run only this; repeatable.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="probe.setting=value; repeatable.")
    ] = None,
    null_seeds: Annotated[
        int | None,
        typer.Option(help="Copies with new random weights that probes compare with.", min=0),
    ] = None,
    time_budget: Annotated[
        float | None, typer.Option(help="Leave out samples so that measuring takes this long [s].")
    ] = None,
    memory_budget: Annotated[
        float | None, typer.Option(help="Divide batches so that a probe takes this much [GiB].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; ./audit if unset.")] = None,
) -> None:
    """Say what is audited, how it is measured, and where the results go."""


def verdict_flags(
    limit: Limit = None,
    fail_on: FailOnFlag = None,
    junit: Junit = False,
    summary: Markdown = False,
) -> None:
    """Say how it is judged, and what else is written."""


def taking(*groups: Command) -> Callable[[Command], Command]:
    """Give a command the flags of some groups before its own; it finds them in its context."""

    def given(command: Command) -> Command:
        context, *own = inspect.signature(command).parameters.values()
        shared = [flag for group in groups for flag in inspect.signature(group).parameters.values()]
        names = {context.name, *(flag.name for flag in own)}

        @wraps(command)
        def run(**values: Any) -> None:
            command(**{name: value for name, value in values.items() if name in names})

        flags = [flag.replace(kind=flag.KEYWORD_ONLY) for flag in (context, *shared, *own)]
        run.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined]
        return run

    return given
