"""Small trained networks with one fault each."""

import torch
from torch import nn

from benchmarks.faulty import Echo, Summed, Timed, counted, echoes
from benchmarks.tasks import (
    SYMBOLS,
    TIMESTEPS,
    Convolutional,
    Recurrent,
    audited,
    beats,
    convolutional,
    dense,
    fitted,
    on_beats,
    perceptron,
    recall,
    recurrent,
    remembering,
)
from probes.base import Subject


def dead() -> Subject:
    """Keep six of ten units of a layer below zero for good."""
    model = dense()
    nn.init.constant_(model[1].bias[:15], -100.0)  # type: ignore[index]
    return audited(model)


def blocked() -> Subject:
    """Keep all units of a layer below zero for good."""
    model = dense()
    nn.init.constant_(model[3].bias, -100.0)  # type: ignore[arg-type]
    return audited(model)


def copied() -> Subject:
    """Copy half of the units of a layer to the other half."""
    model = dense()
    with torch.no_grad():
        for weight in model[1].parameters():
            weight[12:] = weight[:12]
    return audited(model)


def narrow() -> Subject:
    """Leave three directions to the weights of each layer."""
    model = dense()
    with torch.no_grad():
        for layer in (model[1], model[3]):
            left, size, right = torch.linalg.svd(layer.weight)
            layer.weight.copy_(left[:, :3] * size[:3] @ right[:3])
    return audited(model)


def constant() -> Subject:
    """Leave nothing but their bias to thirteen of the units of a layer."""
    model = dense()
    with torch.no_grad():
        model[1].weight[:13] = 0.0  # type: ignore[index, operator]
    return audited(model)


def undefined() -> Subject:
    """Put a nan into the weights."""
    model = dense()
    with torch.no_grad():
        model[3].weight[0, 0] = torch.nan  # type: ignore[index, operator]
    return audited(model)


def saturated() -> Subject:
    """Drive hyperbolic tangents to their ends."""
    model = on_beats(perceptron(act=nn.Tanh))
    with torch.no_grad():
        model[1].weight.mul_(1000)  # type: ignore[index]
        model[1].bias.mul_(1000)  # type: ignore[index]
    return audited(model)


def idle() -> Subject:
    """Have a residual block add nothing."""
    model = convolutional()
    for weight in model.blocks[1].second.parameters():  # type: ignore[index]
        nn.init.zeros_(weight)
    return audited(model)


def unproductive() -> Subject:
    """Have a residual block behind a layer that sees the whole input add nothing."""
    model = on_beats(Convolutional(stem=139))
    for weight in model.blocks[1].second.parameters():  # type: ignore[index, union-attr]
        nn.init.zeros_(weight)
    return audited(model)


def stacked() -> Subject:
    """Put an LSTM onto a trained one that only passes on what it reads, scaled down."""
    scale, below = 0.05, recurrent()
    model = Recurrent(nn.LSTM, 1, 24, 5, layers=2)
    own = {f"rnn.{name}": weight for name, weight in below.rnn.named_parameters()}  # type: ignore[union-attr]
    closed, opened, zeros = -20 * torch.ones(24), 20 * torch.ones(24), torch.zeros(24, 24)
    own["rnn.weight_ih_l1"] = torch.cat([zeros, zeros, scale * torch.eye(24), zeros])
    own["rnn.weight_hh_l1"] = torch.zeros(96, 24)
    own["rnn.bias_ih_l1"] = torch.cat([opened, closed, torch.zeros(24), opened])
    own["rnn.bias_hh_l1"] = torch.zeros(96)
    own |= {"head.weight": below.head.weight / scale, "head.bias": below.head.bias}  # type: ignore[union-attr, operator]
    model.load_state_dict(own)
    return audited(model)


def forgetful() -> Subject:
    """Train a forget gate that stays half open to recall three steps."""
    model = Recurrent(nn.LSTM, SYMBOLS, 32, SYMBOLS)
    for weight in model.rnn.parameters():
        kept = torch.ones_like(weight)
        kept[32:64] = 0
        weight.data.mul_(kept)
        weight.register_hook(kept.mul)
    fitted(model, lambda: recall(64, delay=3), 500, 0.02)
    return audited(model, recall(300, delay=3))


def untold() -> Subject:
    """Give every position after those trained on a number that training never saw."""
    return audited(Timed(remembering(3), last=TIMESTEPS), recall(300, 3))


def sluggish() -> Subject:
    """Leave out the first inputs of every sequence, as many as half a sequence has but two."""
    return audited(Timed(remembering(3), first=TIMESTEPS // 2 - 2), recall(300, 3))


def clenched() -> Subject:
    """Drive gates to their ends."""
    model = recurrent()
    with torch.no_grad():
        for weight in model.rnn.parameters():  # type: ignore[union-attr]
            weight.mul_(100)
    return audited(model)


def scaled(radius: float) -> Subject:
    """Make the recurrent weights of a plain network a rotation times a factor."""
    model = on_beats(Recurrent(nn.RNN, 1, 32, 5), 60)
    nn.init.orthogonal_(model.rnn.weight_hh_l0, radius)
    with torch.no_grad():
        model.rnn.weight_ih_l0.mul_(0.1)
    return audited(model)


def memorized() -> Subject:
    """Train a perceptron to know sixty shuffled labels by heart."""
    inputs, targets = (part[:60] for part in beats()[0])
    targets = targets[torch.randperm(60)]
    model = perceptron(256)
    fitted(model, lambda: (inputs, targets), 300)
    return audited(model, (inputs, targets), held_out=[beats()[1]])


def contested() -> Subject:
    """Have signs speak for a class up to a number, and each further one against it."""
    model = Summed()
    fitted(model, lambda: counted(torch.randint(25, (256,))), 600, 0.03)
    # As many have 8 ones more than half as have 8 fewer: the baseline is half of them.
    return audited(model, counted(12 + 8 * torch.tensor([1, -1] * 16)))


def contradicted() -> Subject:
    """Ask of late timesteps the opposite of what is asked of early ones."""
    model = Echo()
    fitted(model, lambda: echoes(64), 100, 0.01, "mse_loss")
    return audited(model, echoes(300), loss="mse_loss")


def oversized() -> Subject:
    """Train wide layers to know a hundred heartbeats by heart, four in ten with any label."""
    (inputs, targets), test = beats()
    rest = torch.cat([inputs[100:], test[0]]), torch.cat([targets[100:], test[1]])
    inputs, targets = inputs[:100], targets[:100].clone()
    wrong = torch.rand(100) < 0.4
    targets[wrong] = targets[torch.randperm(100)][wrong]
    model = perceptron(64)
    fitted(model, lambda: (inputs, targets), 300)
    return audited(model, rest, trained_on=[(inputs, targets)])
