"""Clipped fields against nan probing, on nets that are small and odd."""

import numpy as np
import oracle
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.nn import functional

from probes.base import Subject
from probes.receptive_field import ReceptiveField


class Functional(nn.Module):
    """Wrap a function of layers, so that it can be called as a module."""

    def __init__(self, run, **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor):
        return self.run(self, x)


def net(run, **layers: nn.Module) -> nn.Module:
    return Functional(run, **layers)


def asymmetric(m, x):
    return m.end(functional.relu_(m.conv(functional.pad(x, (2, 0, 1, 3)))))


def shuffled(m, x):
    left, right = m.first(x).chunk(2, 1)
    both = torch.cat([m.left(left), m.right(right)], 1)
    both = both.view(1, 2, 2, *both.shape[2:]).transpose(1, 2).flatten(1, 2)
    return m.end(both)


def shifted(m, x):
    """Temporal shift: a third of the channels from before, a third from behind."""
    x = m.first(x)
    moved = torch.zeros_like(x)
    moved[:, :1, 1:] = x[:, :1, :-1]
    moved[:, 1:2, :-1] = x[:, 1:2, 1:]
    moved[:, 2:] = x[:, 2:]
    return m.end(moved)


def written_over(m, x):
    """Write in place to a view, and read the other view after that."""
    x = m.first(x)
    left, right = x[:, :2], x[:, 2:]
    left += m.side(right)
    return m.end(x) + m.end(torch.cat([right, left], 1))


def weighted(m, x):
    return functional.conv2d(m.first(x), m.end.weight, padding=1, dilation=1) + m.end(x)


def depth_to_space(m, x):
    return m.end(functional.pixel_shuffle(m.first(x), 2))


def focus(m, x):
    corners = [x[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return m.end(torch.cat(corners, 1))


def recursive(m, x):
    for _ in range(3):
        x = x + torch.relu_(m.conv(x))
    return m.end(x)


def windows(m, x):
    """Attention within windows of four positions, on tokens that convolutions made."""
    x = m.first(x)
    tokens = x.transpose(1, 2).reshape(-1, 4, x.shape[1])
    weights = (tokens @ tokens.transpose(1, 2)).softmax(-1)
    x = (weights @ tokens).reshape(1, -1, x.shape[1]).transpose(1, 2)
    return m.end(x)


def unfolded(m, x):
    patches = functional.unfold(m.first(x), 3, padding=1)
    mixed = m.linear(patches.transpose(1, 2)).transpose(1, 2)
    return m.end(mixed.reshape(1, 2, *x.shape[2:]))


def roundabout(m, x):
    return m.end(torch.roll(m.first(x), (3, -2), (2, 3)).flip(2))


def channels_last(m, x):
    x = m.first(x.contiguous(memory_format=torch.channels_last))
    x = m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return m.end(functional.max_pool2d(x, 2))


def dictionary(m, x):
    return {"aux": None, "map": (m.end(m.first(x)), m.first(x).mean())}


def antialiased(m, x):
    x = functional.interpolate(m.first(x), (5, 17), mode="bilinear", antialias=True)
    return m.end(functional.interpolate(x, (7, 9), mode="bicubic", antialias=True))


def steered(m, x):
    """The kernel of one sample is computed from the sample."""
    kernel = m.kernel(x.mean((2, 3))).view(1, 2, 3, 3)
    return m.end(functional.conv2d(m.first(x), kernel))


def spectral(m, x):
    """Short-time Fourier transform, whose frames overlap in memory."""
    frames = torch.stft(m.first(x)[:, 0], 8, 3, window=m.window, return_complex=True)
    return m.end(torch.view_as_real(frames).square().sum(-1))


def tiled(m, x):
    """Repeat, split, index, scatter and gather."""
    x = m.first(x)
    x = torch.cat([piece.flip(2) for piece in x.split([5, 7], 2)], 2).repeat(1, 2, 1)
    empty = torch.zeros_like(x)
    spread = empty.scatter(1, torch.tensor([1, 0, 3, 2]).view(1, 4, 1).expand_as(x), x)
    return m.end(spread[:, ::2])


def gathered(m, x):
    return m.end(m.first(x)[:, :, m.order])


def conv(*args, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(*args, **kwargs)


def order() -> nn.Module:
    layers = {"first": nn.Conv1d(2, 2, 3, padding=1), "end": nn.Conv1d(2, 2, 3, padding=1)}
    model = net(gathered, **layers)
    model.register_buffer("order", torch.tensor([5, 4, 3, 2, 1, 0, 6, 8, 7, 11, 10, 9]))
    return model


def spectrogram() -> nn.Module:
    model = net(spectral, first=nn.Conv1d(1, 1, 3), end=nn.Conv1d(5, 2, 3, padding=1))
    model.register_buffer("window", torch.hann_window(8) + 1)
    return model


def residual() -> nn.Module:
    return nn.Sequential(zoo.basic(2, 4, 2), zoo.basic(4, 4, 1))


NOT_MAPS = {"linear", "norm", "kernel"}
"""Layers whose outputs are tokens or have channels last: the oracle would not find their centre."""

NETS = {
    "residual": (residual, (2, 19, 23)),
    "dilated": (lambda: nn.Sequential(conv(2, 2, 3, dilation=2), conv(2, 2, (1, 5))), (2, 15, 13)),
    "even, strided": (
        lambda: nn.Sequential(conv(2, 2, 4, 3, 1), nn.ReLU(), conv(2, 2, 2, 2)),
        (2, 21, 26),
    ),
    "transposed": (
        lambda: nn.Sequential(
            conv(2, 2, 3, 2, 1),
            nn.ConvTranspose2d(2, 2, 3, 2, 1, output_padding=1),
            nn.ConvTranspose2d(2, 4, 4, 3, 0, dilation=2, groups=2),
            conv(4, 1, 3, 2),
        ),
        (2, 9, 11),
    ),
    "ceil pool": (
        lambda: nn.Sequential(
            conv(2, 2, 3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2, 2, ceil_mode=True)
        ),
        (2, 16, 17),
    ),
    "grouped": (
        lambda: nn.Sequential(
            zoo.Branches(conv(2, 2, 1), conv(2, 2, 5, padding=2)),
            conv(4, 8, 3, groups=2),
            conv(8, 8, 3, groups=8),
            conv(8, 2, 1),
        ),
        (2, 14, 15),
    ),
    "asymmetric": (
        lambda: net(asymmetric, conv=conv(2, 2, 3), end=conv(2, 2, 3, padding=1)),
        (2, 9, 10),
    ),
    "reflect and replicate": (
        lambda: nn.Sequential(
            conv(2, 2, 5, padding=2, padding_mode="reflect"),
            conv(2, 2, 3, padding=1, padding_mode="replicate"),
        ),
        (2, 5, 6),
    ),
    "circular": (
        lambda: nn.Sequential(conv(2, 2, 3, padding=1, padding_mode="circular"), conv(2, 2, 3, 2)),
        (2, 12, 11),
    ),
    "squeeze-excite": (
        lambda: nn.Sequential(conv(2, 4, 3), zoo.SqueezeExcite(4), conv(4, 2, 3)),
        (2, 9, 9),
    ),
    "shuffled": (
        lambda: net(
            shuffled,
            first=conv(2, 4, 3, 2, 1),
            left=conv(2, 2, 1),
            right=conv(2, 2, 5, padding=2),
            end=conv(4, 4, 3, padding=1, groups=4),
        ),
        (2, 15, 12),
    ),
    "shifted": (
        lambda: net(
            shifted,
            first=nn.Conv1d(2, 3, 3, padding=1),
            end=nn.Conv1d(3, 2, 3, groups=1, padding=1),
        ),
        (2, 12),
    ),
    "written over": (
        lambda: net(
            written_over,
            first=nn.Conv1d(2, 4, 3, padding=1),
            side=nn.Conv1d(2, 2, 5, padding=2),
            end=nn.Conv1d(4, 4, 1, groups=4),
        ),
        (2, 13),
    ),
    "functional": (
        lambda: net(weighted, first=conv(2, 2, 5, padding=2), end=conv(2, 2, 3, padding=1)),
        (2, 9, 8),
    ),
    "depth to space": (
        lambda: net(depth_to_space, first=conv(2, 8, 3, 2, 1), end=conv(2, 2, 3, padding=1)),
        (2, 10, 9),
    ),
    "focus": (lambda: net(focus, end=conv(8, 2, 3, padding=1)), (2, 12, 10)),
    "shared": (
        lambda: net(recursive, conv=conv(2, 2, 3, padding=1), end=conv(2, 1, 1)),
        (2, 11, 10),
    ),
    "windows": (
        lambda: net(
            windows, first=nn.Conv1d(2, 2, 3, padding=1), end=nn.Conv1d(2, 2, 3, padding=1)
        ),
        (2, 24),
    ),
    "unfolded": (
        lambda: net(
            unfolded, first=conv(2, 2, 3, padding=1), linear=nn.Linear(18, 2), end=conv(2, 2, 1)
        ),
        (2, 9, 8),
    ),
    "roundabout": (
        lambda: net(roundabout, first=conv(2, 2, 3, padding=1), end=conv(2, 2, 3, padding=1)),
        (2, 16, 14),
    ),
    "channels last": (
        lambda: net(
            channels_last, first=conv(2, 2, 3, 2, 1), norm=nn.LayerNorm(2), end=conv(2, 2, 3)
        ),
        (2, 22, 19),
    ),
    "bilinear": (
        lambda: nn.Sequential(
            conv(2, 2, 3, 2, 1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            conv(2, 2, 3, padding=1),
            nn.Upsample(size=(13, 11), mode="nearest"),
            nn.Upsample(scale_factor=1.5, mode="bicubic", align_corners=True),
        ),
        (2, 10, 12),
    ),
    "adaptive": (
        lambda: nn.Sequential(
            conv(2, 2, 3), nn.AdaptiveAvgPool2d((5, 3)), nn.AdaptiveMaxPool2d((2, 1))
        ),
        (2, 13, 12),
    ),
    "dictionary": (
        lambda: net(dictionary, first=conv(2, 2, 3, 2), end=conv(2, 2, 3, padding=1)),
        (2, 13, 14),
    ),
    "1-D": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 5, 2),
            nn.PReLU(),
            nn.MaxPool1d(3, 2),
            nn.GLU(1),
            nn.Conv1d(2, 2, 3, padding=1),
        ),
        (2, 40),
    ),
    "causal": (lambda: zoo.tcn(3), (1, 40)),
    "3-D": (
        lambda: nn.Sequential(
            zoo.basic(2, 2, 1, nn.Conv3d), nn.MaxPool3d(2), zoo.basic(2, 2, 2, nn.Conv3d)
        ),
        (2, 8, 12, 9),
    ),
    "antialiased": (
        lambda: net(antialiased, first=conv(2, 2, 3), end=conv(2, 2, 3, padding=1)),
        (2, 15, 14),
    ),
    "steered": (
        lambda: net(steered, first=conv(2, 2, 3), kernel=nn.Linear(2, 18), end=conv(1, 1, 3)),
        (2, 11, 12),
    ),
    "spectral": (spectrogram, (1, 40)),
    "tiled": (
        lambda: net(tiled, first=nn.Conv1d(2, 2, 3, padding=1), end=nn.Conv1d(2, 2, 3, padding=1)),
        (2, 12),
    ),
    "space to depth": (
        lambda: nn.Sequential(nn.PixelUnshuffle(2), conv(8, 2, 3, padding=1), nn.ChannelShuffle(2)),
        (2, 12, 10),
    ),
    "buffer index": (order, (2, 12)),
    "U-Net": (lambda: zoo.UNet(2), (3, 16, 24)),
    "U-Net, bilinear": (lambda: zoo.UNet(2, bilinear=True), (3, 16, 24)),
    "inception": (
        lambda: nn.Sequential(
            zoo.Branches(
                zoo.unit(2, 2, 1),
                nn.Sequential(zoo.unit(2, 2, 1), zoo.unit(2, 2, (1, 7)), zoo.unit(2, 2, (7, 1))),
                nn.AvgPool2d(3, 1, 1),
            ),
            nn.MaxPool2d(3, 2),
        ),
        (2, 14, 15),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_clipped_field_is_where_nan_comes_through(name):
    make, shape = NETS[name]
    model = make().eval()
    x = torch.rand(1, *shape)
    dims = tuple(range(2, x.dim()))
    trace = ReceptiveField()(Subject(model, [x]))
    assert trace.attrs["tensors"] == "symbolic"
    assert "UNKNOWN" not in trace["status"]
    expected = oracle.intervals(model, x, dims)
    assert sorted(expected) == sorted(trace["layer"].to_numpy())
    for layer in expected.keys() - NOT_MAPS:
        here = trace.sel(layer=layer)
        found = [*zip(here["start"].to_numpy(), here["stop"].to_numpy(), strict=True)]
        assert found == expected[layer], layer


@pytest.mark.parametrize("name", NETS)
def test_symbolic_and_real_tensors_agree(name, monkeypatch):
    make, shape = NETS[name]
    subject = Subject(make().eval(), [torch.rand(2, *shape)])
    symbolic = ReceptiveField()(subject)

    def refuse(*args, **kwargs):
        raise RuntimeError("no fake tensors today")

    monkeypatch.setattr("probes.field.survey.FakeTensorMode.from_tensor", refuse)
    real = ReceptiveField()(subject)
    assert real.attrs["tensors"] == "real (RuntimeError: no fake tensors today)"
    for name in ("size", "jump", "minimal", "start", "stop"):
        np.testing.assert_array_equal(symbolic[name], real[name])
