import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from analyzer.findings import Severity
from analyzer.limits import Limits
from analyzer.rules.depth_contribution import contributions
from analyzer.rules.unproductive_depth import unproductive_depth
from probes.algebra.similarity import linear_cka
from probes.base import Subject
from probes.depth.edits import Gates
from probes.depth.provenance import Held
from probes.depth.survey import survey, watching
from probes.depth_contribution import DepthContribution
from probes.errors import AnalyzerError, NotApplicable
from probes.model.taps import same_bits
from probes.receptive_field import ReceptiveField

torch.manual_seed(0)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Block(nn.Module):
    """Residual block whose branch is multiplied by ``gate``, which the probe knows nothing of."""

    def __init__(self, before: int, after: int, in_place: bool) -> None:
        super().__init__()
        self.first = nn.Conv1d(before, after, 3, padding=1)
        self.norm = nn.BatchNorm1d(after)
        self.second = nn.Conv1d(after, after, 3, padding=1)
        self.short = nn.Identity() if before == after else nn.Conv1d(before, after, 1)
        self.in_place = in_place
        self.gate = 1.0
        self.norm.running_mean, self.norm.running_var = torch.randn(after), torch.rand(after) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.norm(self.first(x)).relu())
        if self.gate != 1:
            h = self.gate * h
        if self.in_place:
            h.add_(self.short(x))
            return functional.relu(h, inplace=True)
        y: Tensor = (h + self.short(x)).relu()
        return y


class Net(nn.Module):
    def __init__(self, in_place: bool = False, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 4, 3, padding=1)
        self.blocks = nn.Sequential(
            Block(4, 4, in_place), Block(4, 6, in_place), Block(6, 6, in_place)
        )
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)).mean(2))
        return y


def data(samples: int = 7, classes: int = 3) -> tuple[Tensor, Tensor]:
    return double(samples, 2, 8), torch.randint(classes, (samples,))


def measured(
    model: nn.Module, batches: Any, loss: Any = "cross_entropy", **rest: Any
) -> xr.Dataset:
    return DepthContribution(**rest)(Subject(model, batches, loss))


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return functional.cross_entropy(model(x), y, reduction="none")


RESIDUAL = ["blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize("in_place", [False, True])
def test_leaving_out_is_exact_against_an_edited_copy(in_place: bool) -> None:
    model, (x, y) = Net(in_place).double().eval(), data()
    trace = measured(model, [(x[:3], y[:3]), (x[3:], y[3:])])
    assert trace["block"].to_numpy().tolist() == ["stem", *RESIDUAL, "head"]
    assert trace["kind"].sel(block=RESIDUAL).to_numpy().tolist() == [
        "identity", "projection", "identity",
    ]  # fmt: skip
    intact = losses(model, x, y)
    np.testing.assert_allclose(trace["intact_loss"], intact, rtol=0, atol=1e-15)
    for at, name in enumerate(RESIDUAL):
        edited = copy.deepcopy(model)
        block: Any = edited.blocks[at]
        nn.init.zeros_(block.second.weight)
        nn.init.zeros_(block.second.bias)
        expected = losses(edited, x, y) - intact
        np.testing.assert_allclose(trace["loss_change"].sel(block=name), expected, atol=1e-14)
        flipped = model(x).argmax(1) != edited(x).argmax(1)
        assert trace["decision_change"].sel(block=name).to_numpy().tolist() == flipped.tolist()
    assert trace["loss_change"].sel(block=["stem", "head"]).isnull().all()


@pytest.mark.parametrize("in_place", [False, True])
def test_gate_gradients_are_those_of_finite_differences(in_place: bool) -> None:
    model, (x, y) = Net(in_place).double().eval(), data()
    trace = measured(model, [(x[:3], y[:3]), (x[3:], y[3:])])
    for at, name in enumerate(RESIDUAL):
        ends = []
        for gate in (1 + 1e-5, 1 - 1e-5):
            edited: Any = copy.deepcopy(model)
            edited.blocks[at].gate = gate
            ends.append(losses(edited, x, y))
        expected = ((ends[0] - ends[1]) / 2e-5).numpy()
        found = trace["gate_gradient"].sel(block=name).to_numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
        estimate = trace["estimate"].sel(block=name)
        np.testing.assert_allclose(estimate, -found + found**2 / 2, rtol=1e-12)


def test_the_ratio_of_branch_and_shortcut_is_per_sample() -> None:
    model, (x, y) = Net().double().eval(), data()
    trace = measured(model, [(x, y)])
    with torch.no_grad():
        before: Any = model.stem(x)
        for at, name in enumerate(RESIDUAL):
            block: Any = model.blocks[at]
            branch = block.second(block.norm(block.first(before)).relu())
            expected = branch.flatten(1).norm(dim=1) / block.short(before).flatten(1).norm(dim=1)
            np.testing.assert_allclose(trace["branch_ratio"].sel(block=name), expected, rtol=1e-12)
            before = block(before)


def test_outputs_are_compared_with_what_a_block_reads_or_with_the_block_before() -> None:
    model, (x, y) = Net().double().eval(), data(60)
    trace = measured(model, [(x[:25], y[:25]), (x[25:], y[25:])])
    with torch.no_grad():
        read = last = model.stem(x)
        pairs = []
        for part in model.blocks:
            block: Any = part
            branch, short = block.second(block.norm(block.first(read)).relu()), block.short(read)
            # A block ends with the sum; a projected shortcut is not what it reads.
            before = read if short is read else last
            pairs.append((before.mean(2), (branch + short).mean(2)))
            last, read = branch + short, (branch + short).relu()
        pairs.append((last.mean(2), model(x)))
    assert trace["similarity"].isel(block=0).isnull()
    for name, pair in zip([*RESIDUAL, "head"], pairs, strict=True):
        found, expected = trace.sel(block=name), linear_cka(*pair)
        for end, value in zip(("", "_low", "_high"), expected, strict=True):
            assert float(found[f"similarity{end}"]) == pytest.approx(value, abs=1e-4)


def test_layers_without_shortcut_are_bypassed_with_their_normalization() -> None:
    model = nn.Sequential(
        nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU(),
        nn.Linear(5, 5), nn.ReLU(inplace=True), nn.Linear(5, 3),
    ).double().eval()  # fmt: skip
    model[3].running_mean, model[3].running_var = double(5), torch.rand(5).double() + 1
    x, y = double(8, 4), torch.randint(3, (8,))
    trace = measured(model, [(x, y)])
    intact = losses(model, x, y)
    for name, removed in (("2", [2, 3]), ("5", [5])):
        edited = nn.Sequential(*(part for at, part in enumerate(model) if at not in removed))
        expected = losses(edited, x, y) - intact
        np.testing.assert_allclose(trace["loss_change"].sel(block=name), expected, atol=1e-14)
    assert (
        trace["reason"].sel(block=["0", "7"]).to_numpy().tolist()
        == ["it does not return the shape that it reads"] * 2
    )
    for name, start, stop in (("2", 2, 4), ("5", 5, 6)):
        read = model[:start](x).detach()
        gate = torch.ones(8, 1, dtype=torch.float64, requires_grad=True)
        mixed = read + gate * (model[start:stop](read) - read).detach()
        functional.cross_entropy(model[stop:](mixed), y, reduction="sum").backward()
        assert gate.grad is not None
        found = trace["gate_gradient"].sel(block=name)
        np.testing.assert_allclose(found, gate.grad[:, 0], rtol=1e-9)


class Planted(nn.Module):
    """Residual blocks of one layer each; the second one returns zero."""

    def __init__(self, blocks: int = 4, width: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.head = nn.Linear(width, 3)
        nn.init.zeros_(self.blocks[1].weight)
        nn.init.zeros_(self.blocks[1].bias)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x).tanh()
        y: Tensor = self.head(x)
        return y


def test_a_block_that_learnt_nothing_changes_nothing() -> None:
    trace = measured(Planted().eval(), [(torch.randn(60, 6), torch.randint(3, (60,)))])
    idle = trace.sel(block="blocks.1")
    for name in ("loss_change", "decision_change", "gate_gradient", "estimate", "branch_ratio"):
        assert (idle[name] == 0).all(), name
    assert float(idle["similarity"]) == pytest.approx(1)
    assert float(idle["similarity_low"]) == pytest.approx(1)
    others = trace.sel(block=["blocks.0", "blocks.2", "blocks.3"])
    assert (abs(others["loss_change"]).mean("sample") > 1e-3).all()
    assert (others["similarity"] < 0.999).all()


def test_a_layer_that_repeats_the_one_before_changes_nothing() -> None:
    model = nn.Sequential(
        nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 3, padding=1, bias=False),
        nn.ReLU(), nn.Conv1d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3),
    ).eval()  # fmt: skip
    nn.init.dirac_(model[2].weight)
    trace = measured(model, [(torch.randn(50, 1, 8), torch.randint(3, (50,)))])
    assert (trace["loss_change"].sel(block="2") == 0).all()
    assert float(trace["similarity"].sel(block="2")) == pytest.approx(1)
    assert (trace["loss_change"].sel(block="4") != 0).any()


def test_blocks_are_left_out_together_in_the_order_of_the_estimate() -> None:
    model, x, y = Planted(5).double().eval(), double(40, 6), torch.randint(3, (40,))
    trace = measured(model, [(x, y)], joint=2, ablations=2)
    assert trace["removed"].to_numpy().tolist() == [2, 5]
    order = trace["block"].to_numpy()[np.argsort(trace["rank"].to_numpy())]
    means = trace["estimate"].mean("sample").sel(block=order[:-1])
    assert (np.diff(means) >= 0).all()
    for count in (2, 5):
        edited = copy.deepcopy(model)
        for name in order[:count]:
            for weight in edited.get_submodule(name).parameters():
                nn.init.zeros_(weight)
        expected = losses(edited, x, y) - losses(model, x, y)
        np.testing.assert_allclose(trace["joint_change"].sel(removed=count), expected, atol=1e-14)
    tried = ~np.isnan(trace["loss_change"].to_numpy()).any(0)
    assert tried.sum() == 2
    assert trace["rank"].to_numpy()[tried].tolist() in ([0, 2], [2, 0])
    assert trace.attrs["removable"] == 5


def test_without_a_loss_it_is_the_distance_of_the_outputs() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.inner(x)
            y: Tensor = self.head(x + self.other(x))
            return y

    model, x = Linear().double(), double(9, 4)
    trace = measured(model, [x], loss=None)
    edited = copy.deepcopy(model)
    nn.init.zeros_(edited.inner.weight)
    nn.init.zeros_(edited.inner.bias)
    distance = 0.5 * (model(x) - edited(x))[:, 0].square().detach()
    np.testing.assert_allclose(trace["loss_change"].sel(block="inner"), distance, rtol=1e-9)
    # One output, linear in the gate: the estimate is exact whatever the sign.
    np.testing.assert_allclose(trace["estimate"].sel(block="inner"), distance, rtol=1e-9)
    np.testing.assert_allclose(trace["intact_loss"], 0.5 * model(x)[:, 0].square().detach())
    assert trace["decision_change"].isnull().all()


def test_without_targets_the_intact_choice_stays_the_target() -> None:
    model, x = Net().double().eval(), data(40)[0]
    model.head.bias.data -= model(x).mean(0).detach()
    trace = measured(model, [x])
    assert (trace["decision_change"] == 1).any()
    choice = model(x).argmax(1)
    again = measured(model, [(x, choice)])
    xr.testing.assert_equal(trace, again)
    assert (trace["loss_change"].sum("sample").sel(block=RESIDUAL) != 0).all()


def test_memory_and_work_bound_how_many_samples_run() -> None:
    model, x, y = Planted().double().eval(), double(90, 6), torch.randint(3, (90,))
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    whole = measured(model, [(x, y)])
    assert max(sizes) == 90
    sizes.clear()
    small = measured(model, [(x, y)], memory=1000, work=1)
    fitting = 1000 // (4 * 18 + 3)
    assert sorted({*sizes}) == [2, 90 % fitting, fitting, 32]
    assert small.attrs["ablated_samples"] == 32
    kept = ~np.isnan(small["loss_change"].sel(block="blocks.0").to_numpy())
    assert kept.sum() == 32
    assert np.flatnonzero(kept).tolist() == [at * 90 // 32 for at in range(32)]
    for name in ("estimate", "intact_loss"):
        np.testing.assert_allclose(small[name], whole[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        small["loss_change"].to_numpy()[kept], whole["loss_change"].to_numpy()[kept], atol=1e-12
    )


def test_samples_are_spread_over_the_audit_data() -> None:
    model, x, y = Planted().double().eval(), double(50, 6), torch.randint(3, (50,))
    trace = measured(model, [(x[:20], y[:20]), (x[20:], y[20:])], samples=5)
    assert trace["sample"].to_numpy().tolist() == [0, 10, 20, 30, 40]
    expected = losses(model, x, y)[[0, 10, 20, 30, 40]]
    np.testing.assert_allclose(trace["intact_loss"], expected, rtol=1e-12)


def test_progress_ends_at_its_total() -> None:
    told: list[tuple[int, int]] = []
    x, y = data()
    probe = DepthContribution()
    probe(Subject(Net().double(), [(x, y)], "cross_entropy"), lambda *step: told.append(step))
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len({total for _, total in told}) == 1
    told.clear()
    probe = DepthContribution(ablations=0, joint=0)
    probe(Subject(Net().double(), [(x, y)], "cross_entropy"), lambda *step: told.append(step))
    # The pass for the gates, and the end.
    assert told == [(len(x), len(x))] * 2


@pytest.mark.parametrize("model", [nn.Linear(6, 3), nn.Sequential(nn.Tanh(), nn.Linear(6, 3))])
def test_a_single_layer_has_no_depth(model: nn.Module) -> None:
    with pytest.raises(NotApplicable) as caught:
        measured(model, [(torch.randn(5, 6), torch.randint(3, (5,)))])
    assert str(caught.value) == (
        "the model has no residual block, and fewer than two layers outside of recurrences: there "
        "is no depth to compare (stacked recurrent layers are measured on their own)"
    )


def test_settings_have_bounds() -> None:
    with pytest.raises(AnalyzerError) as caught:
        measured(Planted(), [torch.randn(5, 6)], samples=0)
    assert str(caught.value) == (
        "depth_contribution needs samples, memory and work >= 1, and ablations and joint >= 0: "
        f"they are 0, {2**28}, {10**11}, 30 and 6"
    )


def test_ablations_and_joint_removals_can_be_turned_off() -> None:
    x, y = torch.randn(20, 6), torch.randint(3, (20,))
    trace = measured(Planted(), [(x, y)], ablations=0, joint=0)
    assert trace["loss_change"].isnull().all()
    assert trace.sizes["removed"] == 0
    assert trace["estimate"].sel(block="blocks.0").notnull().all()


def test_a_model_without_gradient_is_refused() -> None:
    class Frozen(Planted):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x)

    with pytest.raises(AnalyzerError) as caught:
        measured(Frozen(), [(torch.randn(5, 6), torch.randint(3, (5,)))])
    assert str(caught.value) == (
        "the loss has no gradient: the model runs under torch.no_grad, or it or the loss detaches "
        "its result"
    )


GLYPHS = (
    "0E11131519110E", "040C040404040E", "0E11010204081F", "1F02040201110E", "02060A121F0202",
    "1F101E0101110E", "0608101E11110E", "1F010204080808", "0E11110E11110E", "0E11110F01020C",
)  # fmt: skip
"""Digits of five by seven dots, one byte a row."""


def digits(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Digits, shifted, turned, scaled and noisy: (B, 1, 12, 12)."""
    rows = [[int(glyph[2 * row : 2 * row + 2], 16) for row in range(7)] for glyph in GLYPHS]
    dots = torch.tensor([[[byte >> (4 - x) & 1 for x in range(5)] for byte in g] for g in rows])
    y = torch.randint(10, (count,), generator=generator)
    angle, size, shift = (torch.rand(count, *more, generator=generator) for more in ((), (), (2,)))
    angle, size, shift = 0.6 * angle - 0.3, 1 + 0.3 * size, 0.4 * shift - 0.2
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
    affine = torch.cat([turned * size[:, None, None], shift[..., None]], 2)
    grid = functional.affine_grid(affine, (count, 1, 12, 12), align_corners=False)
    plain = functional.pad(dots[y][:, None].float(), (2, 2, 1, 1))
    x = functional.grid_sample(plain, grid, align_corners=False)
    return x + 0.3 * torch.randn(x.shape, generator=generator), y


class Residual(nn.Module):
    """Residual network of 6 n + 2 layers (He et al. 2016)."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem = self.unit(1, width, 3, 1)
        sizes = [(stage, at) for stage in range(3) for at in range(depth)]
        stages = [(width << stage, 1 + (at == 0 < stage)) for stage, at in sizes]
        befores = [width, *(after for after, _ in stages)]
        self.first, self.second, self.short = (nn.ModuleList() for _ in range(3))
        for before, (after, stride) in zip(befores, stages, strict=False):
            self.first.append(self.unit(before, after, 3, stride))
            self.second.append(self.unit(after, after, 3, 1))
            same = before == after
            self.short.append(nn.Identity() if same else self.unit(before, after, 1, stride))
        self.head = nn.Linear(befores[-1], 10)

    @staticmethod
    def unit(before: int, after: int, kernel: int, stride: int) -> nn.Module:
        conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for first, second, short in zip(self.first, self.second, self.short, strict=True):
            x = (second(first(x).relu()) + short(x)).relu()
        y: Tensor = self.head(x.mean((2, 3)))
        return y


@pytest.mark.slow
def test_the_estimate_ranks_the_blocks_of_a_trained_network_as_ablation_does() -> None:
    generator = torch.Generator().manual_seed(1)
    (x, y), held_out = digits(1500, generator), digits(512, generator)
    model, epochs = Residual(5, 8), 10
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    batches = len(x) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * batches)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator)[: batches * 64].split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    assert (model(held_out[0]).argmax(1) == held_out[1]).float().mean() > 0.9
    trace = measured(model, [held_out], samples=512)
    blocks = trace.isel(block=trace["kind"].to_numpy() != "layer")
    assert blocks.sizes["block"] == 15
    change, estimate = (
        blocks[name].mean("sample").to_numpy() for name in ("loss_change", "estimate")
    )
    places = [np.argsort(np.argsort(values)) for values in (change, estimate)]
    assert np.corrcoef(*places)[0, 1] >= 0.8
    assert math.isfinite(contributions(trace)[str(blocks["block"].to_numpy()[0])].value)


def test_the_gated_model_is_bit_equal_to_the_intact_one() -> None:
    for in_place in (False, True):
        model, x = Net(in_place).eval(), torch.randn(5, 2, 8)
        with torch.no_grad():
            found, intact = survey(model, x), model(x)
        gates = Gates({block.key: block for block in found.blocks}, 5, 0)
        with watching(Held.by(model), x, gates):
            gated = model(x)
        assert len(gates.gates) == 3
        assert same_bits(gated.detach(), intact)


def test_a_layer_past_the_input_that_repeats_the_one_before_is_convicted() -> None:
    def conv(channels: int) -> nn.Conv1d:
        return nn.Conv1d(channels, 4, 5, padding=2)

    model = nn.Sequential(
        conv(1), nn.ReLU(), conv(4), nn.ReLU(), conv(4), nn.ReLU(), conv(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    nn.init.dirac_(model[6].weight)
    nn.init.zeros_(model[6].bias)
    subject = Subject(model, [(torch.randn(80, 1, 8), torch.randint(3, (80,)))], "cross_entropy")
    traces = {"receptive_field": ReceptiveField()(subject)}
    traces["depth_contribution"] = DepthContribution()(subject)
    (finding,) = unproductive_depth(traces, Limits())
    assert finding.severity is Severity.FAIL
    assert "6" in finding.where
    assert finding.message.startswith(
        "2 blocks lie past the point where the field covers the input; "
    )
