"""Networks that a few seconds of training give a behaviour: video, text, translation.

Shapes: B sample, T timestep, V token, H unit.
"""

from collections.abc import Callable

import torch
from passage import PASSAGE
from torch import Tensor, nn
from torch.nn import functional

import analyzer

FRAMES, CUE = 8, 2
"""Frames of a video, and the one whose position alone says the class."""

LETTERS, START, COPIED = 12, 0, 6
"""Symbols, the one a decoder starts from, and how many are to be repeated in reverse."""

SAMPLES = 64


def train(
    model: nn.Module, loss: Callable[[], Tensor], steps: int, rate: float = 0.01
) -> nn.Module:
    """Fit a model; ``loss`` draws its own batch."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    return model.eval()


class VideoNetwork(nn.Module):
    """Frames go through the convolutions as samples of one batch, then in order through an LSTM."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.frames = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Flatten(),
        )  # fmt: skip
        self.lstm = nn.LSTM(12 * 9, 16, batch_first=True)
        self.head = nn.Linear(16, classes)

    def forward(self, x_BTCYX: Tensor) -> Tensor:
        features = self.frames(x_BTCYX.flatten(0, 1)).unflatten(0, x_BTCYX.shape[:2])
        y_BTH, _ = self.lstm(features)
        logits: Tensor = self.head(y_BTH[:, -1])
        return logits


def videos(count: int) -> tuple[Tensor, Tensor]:
    """Draw noise with a bright spot in one quarter of each frame; that of the cue is the class."""
    quarter_BT = torch.randint(4, (count, FRAMES))
    x = 0.1 * torch.randn(count, FRAMES, 1, 12, 12)
    sample, frame = torch.meshgrid(torch.arange(count), torch.arange(FRAMES), indexing="ij")
    row_BT, column_BT = 3 + 6 * (quarter_BT // 2), 3 + 6 * (quarter_BT % 2)
    for y in range(-1, 2):
        for z in range(-1, 2):
            x[sample, frame, 0, row_BT + y, column_BT + z] += 1
    return x, quarter_BT[:, CUE]


def video() -> analyzer.Subject:
    """CNN and LSTM that must remember where the spot was in one early frame."""
    model = VideoNetwork()

    def loss() -> Tensor:
        x, y = videos(64)
        value: Tensor = functional.cross_entropy(model(x), y)
        return value

    train(model, loss, 180)
    return analyzer.Subject(model, [videos(SAMPLES)], loss="cross_entropy", time_axis=1)


class LanguageModel(nn.Module):
    """Next character from those before: embedding, stacked LSTM, a distribution per position."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 16)
        self.lstm = nn.LSTM(16, 48, 2, batch_first=True)
        self.head = nn.Linear(48, tokens)

    def forward(self, x_BT: Tensor) -> Tensor:
        y_BTH, _ = self.lstm(self.embed(x_BT))
        logits_BTV: Tensor = self.head(y_BTH)
        return logits_BTV


class TextGenerator(nn.Module):
    """Reads a prompt, then writes, character by character, what it finds most probable."""

    def __init__(self, model: LanguageModel, written: int) -> None:
        super().__init__()
        self.model, self.written = model, written

    def forward(self, prompt_BT: Tensor) -> Tensor:
        inner = self.model
        y_BTH, state = inner.lstm(inner.embed(prompt_BT))
        logits = [inner.head(y_BTH[:, -1:])]
        for _ in range(self.written - 1):
            y_BTH, state = inner.lstm(inner.embed(logits[-1].argmax(-1)), state)
            logits.append(inner.head(y_BTH))
        return torch.cat(logits, 1)


def tokens() -> tuple[Tensor, int]:
    """Return the passage as integers, and how many characters it knows."""
    text = " ".join(PASSAGE.split())
    known = sorted(set(text))
    return torch.tensor([known.index(character) for character in text]), len(known)


def _windows(text_T: Tensor, count: int, length: int) -> Tensor:
    """Draw stretches of the text."""
    start_B = torch.randint(len(text_T) - length, (count,))
    return text_T[start_B[:, None] + torch.arange(length)]


def _trained_language_model() -> tuple[LanguageModel, Tensor]:
    text_T, count = tokens()
    model = LanguageModel(count)

    def loss() -> Tensor:
        x_BT = _windows(text_T, 32, 33)
        value: Tensor = functional.cross_entropy(model(x_BT[:, :-1]).mT, x_BT[:, 1:])
        return value

    train(model, loss, 150, 0.02)
    return model, text_T


def language_model() -> analyzer.Subject:
    """Character model of a passage of prose, judged at every position."""
    model, text_T = _trained_language_model()
    x_BT = _windows(text_T, SAMPLES, 33)
    return analyzer.Subject(model, [(x_BT[:, :-1], x_BT[:, 1:])], loss="cross_entropy")


def text_generator() -> analyzer.Subject:
    """The same network in the loop that writes, whose choices stand in for targets."""
    model, text_T = _trained_language_model()
    prompts = _windows(text_T, SAMPLES, 20)
    return analyzer.Subject(TextGenerator(model, 8).eval(), [prompts], loss="cross_entropy")


class Translator(nn.Module):
    """LSTM encoder; decoder that is a cell called in a loop, fed with the true symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(LETTERS, 12)
        self.encoder = nn.LSTM(12, 32, batch_first=True)
        self.target = nn.Embedding(LETTERS, 12)
        self.decoder = nn.LSTMCell(12, 32)
        self.head = nn.Linear(32, LETTERS)

    def forward(self, source_BT: Tensor, target_BT: Tensor) -> Tensor:
        _, (h_LBH, c_LBH) = self.encoder(self.source(source_BT))
        state, logits = (h_LBH[0], c_LBH[0]), []
        for x_BH in self.target(target_BT).unbind(1):
            state = self.decoder(x_BH, state)
            logits.append(self.head(state[0]))
        return torch.stack(logits, 1)


class CallingTranslator(nn.Module):
    """The same with modules that are called once per symbol, fed with what they wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(LETTERS, 12)
        self.encoder = nn.GRU(12, 32, batch_first=True)
        self.decoder = nn.GRU(12, 32, batch_first=True)
        self.head = nn.Linear(32, LETTERS)

    def forward(self, source_BT: Tensor) -> Tensor:
        _, state = self.encoder(self.embed(source_BT))
        symbol_B1, logits = torch.full_like(source_BT[:, :1], START), []
        for _ in range(COPIED):
            y_B1H, state = self.decoder(self.embed(symbol_B1), state)
            logits.append(self.head(y_B1H))
            symbol_B1 = logits[-1].argmax(-1)
        return torch.cat(logits, 1)


def phrases(count: int) -> tuple[Tensor, Tensor]:
    """Draw symbols and the same in reverse."""
    source_BT = torch.randint(1, LETTERS, (count, COPIED))
    return source_BT, source_BT.flip(1)


def encoder_decoder() -> analyzer.Subject:
    """Encoder and decoder LSTM that repeat symbols in reverse; the first read is needed last."""
    model = Translator()

    def shifted(target_BT: Tensor) -> Tensor:
        return functional.pad(target_BT[:, :-1], (1, 0), value=START)

    def loss() -> Tensor:
        source_BT, target_BT = phrases(128)
        logits = model(source_BT, shifted(target_BT))
        value: Tensor = functional.cross_entropy(logits.mT, target_BT)
        return value

    train(model, loss, 300, 0.02)
    source_BT, target_BT = phrases(SAMPLES)
    batch = analyzer.Batch((source_BT, shifted(target_BT)), target_BT)
    return analyzer.Subject(model, [batch], loss="cross_entropy")


def module_called_often() -> analyzer.Subject:
    """Encoder and decoder GRU, the decoder called once for every symbol that it writes."""
    return analyzer.Subject(CallingTranslator(), [phrases(SAMPLES)], loss="cross_entropy")
