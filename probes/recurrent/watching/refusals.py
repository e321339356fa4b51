"""What cannot be measured, refused by name rather than measured wrongly."""

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from probes.errors import AnalyzerError, NotApplicable

_SCRIPTED = re.compile(r"aten::(lstm|gru|rnn_tanh|rnn_relu)(_cell)?\(")


def refuse_scripted(model: nn.Module) -> None:
    """Refuse TorchScript that holds recurrent layers: it runs out of sight.

    Raises
    ------
    AnalyzerError
        Names the scripted module.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and _SCRIPTED.search(_graph(module)):
            raise AnalyzerError(
                f"{name or 'the model'} is TorchScript: the steps of its recurrent layers cannot "
                "be seen; give the Python module it was made from, with the same weights"
            )


def _graph(module: torch.jit.ScriptModule) -> str:
    """Text of the program of a scripted module; empty if it has no forward method."""
    return str(module.inlined_graph) if hasattr(module, "forward") else ""


def refuse(where: str, tensors: list[Tensor]) -> None:
    """Refuse circumstances in which a gradient over time does not exist or is not the model's.

    Parameters
    ----------
    where : str
        Name and kind of the layer that is being called.
    tensors : list of Tensor
        Input and weights of the call.

    Raises
    ------
    AnalyzerError
        Names the layer and what stands in the way.
    """
    if any(frame.f_code.co_filename == checkpoint.__file__ for frame in callers()):
        raise AnalyzerError(
            f"{where} runs under activation checkpointing (torch.utils.checkpoint), which "
            "computes it again during the backward pass: turn checkpointing off"
        )
    if not torch.is_grad_enabled():
        raise AnalyzerError(
            f"{where} runs with gradients off (torch.no_grad or torch.inference_mode in the "
            "model): take that out of the forward method"
        )
    if torch.is_autocast_enabled(tensors[0].device.type):
        raise AnalyzerError(
            f"{where} runs under torch.autocast, in lower precision than its weights: turn that "
            "off in the forward method (enabled=False)"
        )
    narrow = {str(t.dtype) for t in tensors} - {"torch.float32", "torch.float64"}
    if narrow:
        raise AnalyzerError(
            f"{where} computes in {', '.join(sorted(narrow))}: convert the model to float32"
        )


@contextmanager
def calls_of(modules: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """Collect the names of the modules that are called inside the block."""
    called: set[str] = set()
    with ExitStack() as stack:
        for name, module in modules.items():

            def note(_module: nn.Module, _args: object, _out: object, name: str = name) -> None:
                called.add(name)

            stack.callback(module.register_forward_hook(note).remove)
        yield called


def refuse_unseen(modules: Collection[str], called: Collection[str]) -> None:
    """Say why no recurrent operation was seen.

    Parameters
    ----------
    modules, called : collection of str
        Recurrent modules of the model, and those of them that were called.

    Raises
    ------
    NotApplicable
        There are none, or none was called.
    AnalyzerError
        They compute in another way than torch's own.
    """
    if not modules:
        raise NotApplicable(
            "the model runs no recurrent layer of torch (LSTM, GRU, RNN or their cells)"
        )
    if not called:
        raise NotApplicable(
            f"the model has recurrent layers ({', '.join(modules)}) but ran none of them with this "
            "data"
        )
    raise AnalyzerError(
        f"{', '.join(sorted(called))} ran without the recurrent operation of torch, so that the "
        "steps cannot be seen: a forward method of its own?"
    )


def callers() -> Iterator[FrameType]:
    """Walk the Python frames that lead here, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
