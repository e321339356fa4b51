"""Two networks that classify one heartbeat: a recurrent one and a convolutional one.

Both read the same tensor, so one data file serves both.

Shapes: B sample, T timestep, H unit or channel, K class. Inputs are (B, T, 1).
"""

from torch import Tensor, nn

CLASSES = (
    "normal",
    "R-on-T premature ventricular contraction",
    "premature ventricular contraction",
    "supraventricular premature or ectopic beat",
    "unclassified beat",
)
"""What the targets 0 to 4 stand for, as usually read: the archive only numbers them 1 to 5."""


class EcgLSTM(nn.Module):
    """Stacked LSTM whose last hidden state is classified.

    Parameters
    ----------
    layers, units : int
        Depth, and width of every layer.
    """

    def __init__(self, layers: int = 4, units: int = 64) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, units, layers, batch_first=True)
        self.head = nn.Linear(units, len(CLASSES))

    def forward(self, x_BT1: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        states_BTH, _ = self.lstm(x_BT1)
        logits_BK: Tensor = self.head(states_BTH[:, -1])
        return logits_BK


class ConvUnit(nn.Sequential):
    """Convolution that keeps the length, batch normalization, and ReLU.

    Parameters
    ----------
    before, after : int
        Channels in and out.
    kernel : int
        Width of the convolution, odd [timestep].
    """

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(before, after, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm1d(after)
        self.relu = nn.ReLU()


class ResidualBlock(nn.Module):
    """Two convolutions, and a shortcut around them that is added before the last ReLU.

    Parameters
    ----------
    channels : int
        Channels in and out.
    kernel : int
        Width of both convolutions, odd [timestep].
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.first = ConvUnit(channels, channels, kernel)
        self.conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        self.relu = nn.ReLU()

    def forward(self, x_BHT: Tensor) -> Tensor:
        """Return the sum of both paths, (B, H, T)."""
        y_BHT: Tensor = self.relu(x_BHT + self.norm(self.conv(self.first(x_BHT))))
        return y_BHT


class EcgCNN(nn.Module):
    """Residual network without strides: a stem of two convolutions, blocks of two, a mean.

    Parameters
    ----------
    blocks : int
        Residual blocks; with the stem, ``2 + 2 * blocks`` convolutions.
    channels : int
        Width of every layer.
    kernel : int
        Width of every convolution, odd [timestep].

    References
    ----------
    .. [1] Wang, Yan and Oates, Time Series Classification from Scratch with Deep Neural
       Networks: A Strong Baseline (2017), where residual networks for time series come from.
    """

    def __init__(self, blocks: int = 5, channels: int = 32, kernel: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvUnit(1, channels, kernel), ConvUnit(channels, channels, kernel)
        )
        self.blocks = nn.Sequential(*(ResidualBlock(channels, kernel) for _ in range(blocks)))
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(channels, len(CLASSES))

    def forward(self, x_BT1: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        x_BHT = self.blocks(self.stem(x_BT1.transpose(1, 2)))
        logits_BK: Tensor = self.head(self.pool(x_BHT).squeeze(2))
        return logits_BK


def lstm() -> EcgLSTM:
    """Build the network of ``ecg_lstm.pt``: 4 layers of 64 units, 117,317 parameters."""
    return EcgLSTM()


def cnn() -> EcgCNN:
    """Build the network of ``ecg_cnn.pt``: 12 convolutions of 32 channels, 57,413 parameters."""
    return EcgCNN()
