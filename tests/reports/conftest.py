"""Hand-made records: an LSTM-like one, a CNN-like one, and ones that are hard to set."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity

Variables = dict[str, tuple[tuple[str, ...], Any]]

PROVENANCE = {
    "schema": 1,
    "tool": "gradient-memory-analyzer",
    "tool_version": "0.1.0",
    "model": "models.py:HeartbeatLSTM",
    "checkpoint": "runs/ecg/lstm-4x64.pt",
    "checkpoint_sha256": "7a3e97493f51176e0b27483006f7ed81597f78b2c4c4a018844935a5100fa264",
    "command": "analyzer audit runs/ecg/lstm-4x64.pt --model models.py:HeartbeatLSTM "
    "--data ecg5000-test.npz --loss cross_entropy --out report",
    "data": "ecg5000-test.npz",
    "data_sha256": "d88251f9f1fbac5665c9a09f0a0318e09be38aef5709682c1271a282ec4e48ad",
    "loader": "state dict under 'state_dict'; prefix 'module.' stripped; all keys matched",
    "objective": "cross_entropy of the output, one loss per sample",
    "device": "cpu",
    "dtype": "float32",
    "mode": "eval",
    "seed": 0,
    "samples": 64,
    "parameters": 116485,
    "torch": "2.13.0+cpu",
    "python": "3.11.7",
    "platform": "Linux x86_64",
    "determinism": "TF32 off, cuDNN deterministic, no autotuning",
    "partial": 0,
}


def trace(variables: Variables, coords: dict[str, Any], **attrs: Any) -> xr.Dataset:
    data = {
        name: xr.DataArray(values, dims=dims, attrs={"long_name": name, "units": "1"})
        for name, (dims, values) in variables.items()
    }
    return xr.Dataset(data, coords, {"outcome": "measured", "settings": "{}"} | attrs)


def gradient_flow(
    layers: list[str], kinds: list[str], slope: float, samples: int = 24
) -> xr.Dataset:
    """Gradients that fall by ``slope`` decades a layer towards the input, log-normal in samples."""
    rng = np.random.default_rng(1)
    count = len(layers)
    center = -3 + slope * (np.arange(count) - count + 1)
    spread = rng.normal(0, 0.3, (samples, 1)) + rng.normal(0, 0.08, (samples, count))
    weighted = [int(kind not in ("ReLU", "AdaptiveAvgPool1d")) for kind in kinds]
    parameters = [
        f"{name}.{part}"
        for name, own in zip(layers, weighted, strict=True)
        if own
        for part in ("weight", "bias")
    ]
    norms = rng.uniform(0.4, 9, len(parameters))
    return trace(
        {
            "activation_gradient": (("sample", "layer"), 10 ** (center + spread)),
            "activation": (("sample", "layer"), rng.lognormal(-1, 0.4, (samples, count))),
            "parameter_gradient": (("parameter",), norms * rng.lognormal(-5, 1, norms.size)),
            "parameter_norm": (("parameter",), norms),
            "elements": (("layer",), np.full(count, 16.0)),
        },
        {
            "layer": layers,
            "parameter": parameters,
            "kind": ("layer", kinds),
            "weighted": ("layer", weighted),
        },
        not_called="",
        without_gradient="",
        objective="cross_entropy",
    )


def timestep_gradient(layers: int = 4, steps: int = 140, samples: int = 24) -> xr.Dataset:
    """States whose gradient decays at another rate in every layer; the cell's decays slower."""
    rng = np.random.default_rng(2)
    lag = steps - 1 - np.arange(steps)
    rates = np.linspace(0.018, 0.034, layers)[:, None]
    noise = rng.normal(0, 0.15, (samples, layers, 1)) + rng.normal(
        0, 0.05, (samples, layers, steps)
    )
    hidden = 10 ** (-2.5 - rates * lag + noise)
    cell = 10 ** (-2.2 - 0.8 * rates * lag + noise)
    dims = ("sample", "layer", "timestep")
    names = [f"lstm.l{index}" for index in range(layers)]
    return trace(
        {
            "hidden_gradient": (dims, hidden),
            "cell_gradient": (dims, cell),
            "hidden_gradient_final": (dims, hidden),
            "cell_gradient_final": (dims, cell),
            "length": (("sample",), np.full(samples, steps)),
        },
        {
            "layer": names,
            "timestep": np.arange(steps),
            "kind": ("layer", ["LSTM"] * layers),
            "units": ("layer", [64] * layers),
            "direction": ("layer", ["forward"] * layers),
        },
        replay_residual=3.1e-7,
        objective="cross_entropy",
    )


def memory_horizon(steps: int = 140, samples: int = 200) -> xr.Dataset:
    """An excess loss that falls to a hundredth at about 37 kept inputs."""
    rng = np.random.default_rng(3)
    grid = np.unique(
        [
            0,
            *(2 ** np.arange(0, np.log2(steps))).astype(int),
            *(k for k in (12, 24, 48) if k < steps),
            steps,
        ]
    )
    curve = 1.7 * np.exp(-grid / 8) + 0.001 * (grid < steps)
    excess = curve * rng.lognormal(0, 0.5, (samples, 1)) + rng.normal(0, 0.02, (samples, grid.size))
    excess[:, -1] = 0
    lag = np.arange(steps)
    reach = 10 ** (-2 - lag / 30 + rng.normal(0, 0.25, (samples, steps)))
    return trace(
        {
            "excess_loss": (("sample", "kept"), excess),
            "reach": (("sample", "lag"), reach),
            "donor": (("sample",), np.roll(np.arange(samples), 1)),
            "intact_loss": (("sample",), rng.uniform(0, 0.4, samples)),
        },
        {"kept": grid, "lag": lag},
        sequence_length=steps,
        intact_loss=0.1873,
        objective="cross_entropy",
    )


def receptive_field(
    layers: list[str], kinds: list[str], axes: list[str], growth: float, inputs: list[int]
) -> xr.Dataset:
    """Fields that grow by ``growth`` positions a layer; pooling sees the whole input."""
    count = len(layers)
    size = 1 + growth * (np.arange(count)[:, None] + 1) * np.ones(len(axes))
    status = ["WHOLE_INPUT" if "Pool" in kind else "EXACT" for kind in kinds]
    reason = ["global pooling" if word != "EXACT" else "" for word in status]
    dims = ("layer", "axis")
    return trace(
        {
            "size": (dims, size),
            "size_without_gates": (dims, size),
            "jump": (dims, np.ones_like(size)),
            "minimal": (dims, size),
            "minimal_input": (dims, size - growth),
            "start": (dims, -size / 2),
            "stop": (dims, size / 2),
            "status": (("layer",), status),
            "reason": (("layer",), reason),
            "input_size": (("axis",), np.array(inputs, float)),
        },
        {"layer": layers, "axis": axes, "kind": ("layer", kinds)},
    )


def effective_field(
    layers: list[str], kinds: list[str], axes: list[str], growth: float, inputs: list[int]
) -> xr.Dataset:
    """Gaussian spots whose width grows with the square root of depth."""
    count = len(layers)
    sigma = np.sqrt(growth * (np.arange(count) + 1))[:, None] * (1 + 0.15 * np.arange(len(axes)))
    rng = np.random.default_rng(4)
    grids = np.meshgrid(*[np.arange(size) - size / 2 for size in inputs], indexing="ij")
    rises = [
        grid[None] ** 2 / sigma[:, i].reshape(-1, *[1] * len(inputs)) ** 2
        for i, grid in enumerate(grids)
    ]
    energy = np.exp(-sum(rises)) * rng.lognormal(0, 0.4, (count, *inputs))
    diameter = 4 * np.sqrt((sigma**2).mean(1))
    dims = {1: ("timestep",), 2: ("y", "x"), 3: ("z", "y", "x")}[len(inputs)]
    variables: Variables = {
        "sigma": (("layer", "axis"), sigma),
        "sigma_low": (("layer", "axis"), sigma * 0.94),
        "sigma_high": (("layer", "axis"), sigma * 1.05),
        "sigma_energy": (("layer", "axis"), sigma / np.sqrt(2)),
        "half_sample_sigma": (("layer", "axis"), sigma * 1.03),
        "diameter": (("layer",), diameter),
        "diameter_low": (("layer",), diameter * 0.94),
        "diameter_high": (("layer",), diameter * 1.05),
        "side50": (("layer",), 0.6 * diameter),
        "luo_size": (("layer",), 1.1 * diameter),
        "theoretical": (
            ("layer", "axis"),
            1 + 6 * (np.arange(count)[:, None] + 1) * np.ones(len(axes)),
        ),
        "input_size": (("axis",), np.array(inputs, float)),
    }
    if len(inputs) < 3:
        variables["energy"] = (("layer", *dims), energy.astype(np.float32))
    coords = {"layer": layers, "axis": axes, "kind": ("layer", kinds)}
    return trace(variables, coords, samples=16)


def absent(outcome: str, reason: str) -> xr.Dataset:
    return xr.Dataset(attrs={"outcome": outcome, "reason": reason, "settings": "{}"})


def record(traces: dict[str, xr.Dataset], **provenance: Any) -> xr.DataTree:
    root = xr.Dataset(attrs=PROVENANCE | provenance)
    return xr.DataTree.from_dict({"/": root, **{f"/{name}": t for name, t in traces.items()}})


def lstm_record(**provenance: Any) -> xr.DataTree:
    layers = [*(f"lstm.l{index}" for index in range(4)), "head"]
    kinds = ["LSTM"] * 4 + ["Linear"]
    reason = "the model has no convolution or pooling layer"
    return record(
        {
            "gradient_flow": gradient_flow(layers, kinds, 0.22),
            "timestep_gradient": timestep_gradient(),
            "memory_horizon": memory_horizon(),
            "receptive_field": absent("not_applicable", reason),
            "effective_field": absent("error", "CUDA out of memory at lstm.l3 [requested 2 GiB]"),
        },
        **provenance,
    )


def cnn_record(axes: int = 1, depth: int = 12, **provenance: Any) -> xr.DataTree:
    layers, kinds = [], []
    for index in range(depth):
        layers += [f"features.{2 * index}", f"features.{2 * index + 1}"]
        kinds += [f"Conv{axes}d", "ReLU"]
    everything = [*layers, "pool", "classifier"]
    all_kinds = [*kinds, f"AdaptiveAvgPool{axes}d", "Linear"]
    convs, conv_kinds = layers[::2], kinds[::2]
    names = {1: ["time"], 2: ["y", "x"], 3: ["z", "y", "x"]}[axes]
    inputs = {1: [140], 2: [48, 64], 3: [12, 32, 32]}[axes]
    facts = {"model": "models.py:HeartbeatCNN", "checkpoint": "runs/ecg/cnn-12.pt"}
    return record(
        {
            "gradient_flow": gradient_flow(everything, all_kinds, 0.12),
            "timestep_gradient": absent("not_applicable", "the model has no recurrent layer"),
            "memory_horizon": memory_horizon()
            if axes == 1
            else absent("not_applicable", "the inputs have no time axis"),
            "receptive_field": receptive_field(
                [*convs, "pool"],
                [*conv_kinds, all_kinds[-2]],
                names,
                16 if axes == 1 else 6,
                inputs,
            ),
            "effective_field": effective_field(convs, conv_kinds, names, 9, inputs),
        },
        **facts | provenance,
    )


def findings_of(tree: xr.DataTree) -> list[Finding]:
    """One finding of every severity, as far as the record's probes allow."""
    layers = tuple(str(name) for name in tree["gradient_flow"]["layer"].to_numpy())
    found = [
        Finding(
            "reach",
            "summary",
            Severity.INFO,
            "Reach",
            "layers: the gradient reaches the first of 5 layers (8.11 times smaller); memory: "
            "the output uses the last 37 of 140 inputs",
        ),
        Finding(
            "numerical-health",
            "gradient_flow",
            Severity.PASS,
            "Numerical health",
            "all activations and gradients are finite in 24 samples",
            value=0.0,
            limit=0.0,
            relation="<=",
            limit_source="by definition",
            samples=24,
        ),
        Finding(
            "gradient-over-depth",
            "gradient_flow",
            Severity.WARN,
            "Gradient over depth",
            f"from the last to the first of {len(layers)} weighted layers the gradient shrinks "
            "by a factor of 137 (0.19 decades a layer)",
            "The first and last layers learn at very different rates.",
            "Add skip connections or normalization, or initialize the weights larger.",
            2.14,
            2.03,
            2.31,
            "decades",
            2.0,
            "<=",
            "torchmortem: first-to-last-layer gradient ratio of 100; here on the robust trend",
            24,
            layers,
        ),
    ]
    for name, node in tree.children.items():
        outcome = node.attrs["outcome"]
        if outcome != "measured":
            severity = Severity.ERROR if outcome == "error" else Severity.NOT_APPLICABLE
            title = name.replace("_", " ").capitalize()
            found.append(Finding("absent", name, severity, title, node.attrs["reason"]))
    return found + _more(tree)


def _more(tree: xr.DataTree) -> list[Finding]:
    ran = {name for name, node in tree.children.items() if node.attrs["outcome"] == "measured"}
    found = [
        Finding(
            "gradient-over-time",
            "timestep_gradient",
            Severity.FAIL,
            "Gradient over time",
            "from the last to the first of 140 timesteps the state gradient of lstm.l3 shrinks "
            "by a factor of 5370 (0.027 decades a step)",
            "The first timesteps hardly train: what happens there is not learned from the "
            "final output.",
            "Raise the forget-gate bias, shorten the sequences, or add outputs along the sequence.",
            3.73,
            3.61,
            3.9,
            "decades",
            3.0,
            "<=",
            "ours: a step with a thousandth of the last step's gradient adds 0.1 % to the weight's",
            24,
            ("lstm.l3",),
        ),
        Finding(
            "layers-or-time",
            "timestep_gradient",
            Severity.INFO,
            "Layers or time",
            "over 140 timesteps (in lstm.l3) the gradient loses 3.7 decades [3.6, 3.9], 0.027 a "
            "step; over 5 layers 0.88 decades [0.8, 0.94], 0.22 a layer",
            "Time is the bottleneck, not depth: the gradient is lost within a layer, over "
            "timesteps.",
            "Work on memory before adding layers.",
            2.82,
            2.7,
            3.1,
            "decades",
            samples=24,
            where=("lstm.l3",),
        ),
        Finding(
            "memory-horizon",
            "memory_horizon",
            Severity.INCONCLUSIVE,
            "Memory horizon",
            "the last 24 of 140 inputs decide: without those before, the loss rises by less "
            "than 1% of what replacing all of them costs",
            "40 samples are too few for a horizon to be judged.",
            "Audit at least 64 samples.",
            24,
            24,
            48,
            "timesteps",
            samples=40,
        ),
        Finding(
            "unproductive-layers",
            "receptive_field",
            Severity.WARN,
            "Unproductive layers",
            "3 of 12 convolutions only see inputs that already cover the whole 140 input: "
            "features.18, features.20, features.22",
            "They cannot add context; whether they add anything else, ablation has to show.",
            "Use larger inputs, or remove layers from the end and compare.",
            3.0,
            unit="layers",
            limit=0.0,
            relation="<=",
            limit_source="Richter et al. 2021",
            samples=1,
            where=("features.18", "features.20", "features.22"),
        ),
        Finding(
            "effective-field",
            "effective_field",
            Severity.INFO,
            "Effective field",
            "the centre unit of features.22 draws on a diameter of 41.6 positions; its "
            "theoretical field is 73, the input 140",
            "What lies further out hardly moves this unit, whatever the theoretical field.",
            value=41.6,
            low=39.1,
            high=43.6,
            unit="positions",
            samples=16,
        ),
    ]
    return [finding for finding in found if finding.probe in ran]


LIMITS = {
    "gradient_flow.warn_decades": {
        "value": 2.0,
        "source": "torchmortem: ratio of 100",
        "overridden": False,
    },
    "gradient_flow.fail_decades": {
        "value": 3.0,
        "source": "torchmortem: ratio of 1000",
        "overridden": False,
    },
    "memory_horizon.share": {
        "value": 0.02,
        "source": "set by the user (default 0.01: Khandelwal)",
        "overridden": True,
    },
    "memory_horizon.required": {"value": float("nan"), "source": "the user", "overridden": False},
}


@pytest.fixture
def make_lstm() -> Callable[..., xr.DataTree]:
    return lstm_record


@pytest.fixture
def make_cnn() -> Callable[..., xr.DataTree]:
    return cnn_record


@pytest.fixture
def make_record() -> Callable[..., xr.DataTree]:
    return record


@pytest.fixture
def make_flow() -> Callable[..., xr.Dataset]:
    return gradient_flow


@pytest.fixture
def judge() -> Callable[[xr.DataTree], list[Finding]]:
    return findings_of


@pytest.fixture
def limits() -> dict[str, dict[str, Any]]:
    return LIMITS
