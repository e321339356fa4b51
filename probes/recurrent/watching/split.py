"""Take recurrent layers apart while a model runs, without touching the model.

Every call of torch's fused recurrent operations is computed layer by layer instead, with bit-equal
results, so that the states of every layer have a gradient.

Shapes: B sample, D direction, P hidden state, H unit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from probes.recurrent.backward.layer import Plan, RecurrentLayer
from probes.recurrent.backward.record import Keep, Segment
from probes.recurrent.backward.recordings import Recordings
from probes.recurrent.watching.interception import Interception, LayerCall
from probes.recurrent.watching.naming import recurrent_modules
from probes.recurrent.watching.refusals import calls_of, refuse_scripted, refuse_unseen


@contextmanager
def recorded(
    model: nn.Module,
    *,
    keep: Keep = "norms",
    weights: bool = False,
    required: bool = True,
    pulses: bool = False,
) -> Iterator[Recordings]:
    """Record the recurrent layers that ``model`` runs inside the block.

    The outputs are bit-equal to those of torch without gradients. Differentiate them afterwards
    with :meth:`probes.recurrent.backward.recordings.Recordings.gradients`, as often as needed.

    Parameters
    ----------
    model : Module
        Not modified. Gradients must be enabled, and the model in eval mode if it has dropout.
    keep : "norms", "factors" or "all"
        Whether a backward pass keeps norms over units only, what the gradients of the weights are
        made of as well, or every state, gate and gradient.
    weights : bool
        Whether the weights of the recurrent layers can be differentiated too, at extra cost.
    required : bool
        Whether it is an error that no recurrent layer runs.
    pulses : bool
        Whether backward passes are to begin at the recurrent layers themselves, as
        :func:`probes.recurrent.truncation.truncated.truncated` needs.

    Yields
    ------
    Recordings
        Filled while the model runs.

    Raises
    ------
    AnalyzerError
        A recurrent layer runs where it cannot be measured; the message names it.
    NotApplicable
        No recurrent layer of torch ran.
    """
    refuse_scripted(model)
    recordings = Recordings(keep)
    recordings.pulses = {} if pulses else None
    modules = recurrent_modules(model)
    recorder = Recorder(recordings, weights=weights)
    with calls_of(modules) as called, Interception(model, recorder):
        yield recordings
    if required and not recordings.segments:
        refuse_unseen(modules, called)


class Recorder:
    """Compute layers by an operation that measures its own backward pass, and record each.

    Parameters
    ----------
    recordings : Recordings
        Receives what is measured.
    weights : bool
        Whether the weights can be differentiated too.
    """

    def __init__(self, recordings: Recordings, *, weights: bool = False) -> None:
        self._recordings = recordings
        self._weights = weights

    def __call__(self, call: LayerCall) -> tuple[Tensor, ...]:
        """Compute one layer, and record that it ran."""
        plan = self._entered(call)
        weights = call.weights if self._weights else [part.detach() for part in call.weights]
        h0_DBP, c0_DBH = call.states if len(call.states) == 2 else (call.states[0], None)
        *outputs, pulse = RecurrentLayer.apply(  # type: ignore[no-untyped-call]
            plan, self._recordings.anchor, call.x, h0_DBP, c0_DBH, *weights
        )
        if self._recordings.pulses is not None:
            self._recordings.pulses[plan.keys[0]] = pulse
            self._recordings.given[plan.keys[0]] = call.x, *call.states
        return tuple(outputs)

    def _entered(self, call: LayerCall) -> Plan:
        """Register every direction."""
        clock, units = call.clock, call.states[0].shape[-1]
        cells = call.states[1].shape[-1] if len(call.states) == 2 else 0
        length_B = clock.by_sample(clock.lengths(), 0)
        keys = tuple(
            self._recordings.enter(Segment(site, clock.timesteps, units, cells, length_B))
            for site in call.sites
        )
        return Plan(call.sites[0].kind, call.fused, clock, self._recordings, keys)
