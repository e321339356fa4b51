"""silero-vad 6.2.3 (MIT): spectrum, four convolutions and an LSTM cell that hear speech.

Shapes: B stretch of sound, S sample of sound, T frame of 512 samples.
"""

import torch
from scipy.io import wavfile
from shipped import shipped
from torch import Tensor, nn
from torch.nn import functional

FILE = shipped("silero_vad", "data/silero_vad_16k.safetensors")

FRAME, CONTEXT, RATE = 512, 64, 16000
FRAMES, STRETCHES = 20, 64


class Silero(nn.Module):
    """Eager form of the network, which the package ships scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, 128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, 1, 1)
        self.conv2 = nn.Conv1d(128, 64, 3, 2, 1)
        self.conv3 = nn.Conv1d(64, 64, 3, 2, 1)
        self.conv4 = nn.Conv1d(64, 128, 3, 1, 1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def encode(self, frame_BS: Tensor) -> Tensor:
        """Turn one frame with its context into features."""
        padded = functional.pad(frame_BS[:, None], (0, CONTEXT), mode="reflect")
        real, imaginary = self.stft_conv(padded).chunk(2, 1)
        x = (real.square() + imaginary.square()).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        return x.squeeze(-1)

    def forward(self, sound_BS: Tensor) -> Tensor:
        sound_BS = functional.pad(sound_BS, (CONTEXT, 0))
        state, found = None, []
        for start in range(CONTEXT, sound_BS.shape[1], FRAME):
            features = self.encode(sound_BS[:, start - CONTEXT : start + FRAME])
            state = self.lstm_cell(features, state)
            logit = self.final_conv(state[0].relu()[..., None])
            found.append(logit.sigmoid().squeeze(1).mean(1))
        return torch.stack(found, 1)


def batches() -> list[Tensor]:
    """Return stretches of a conversation between two people, which pyannote.audio ships."""
    rate, sound = wavfile.read(shipped("pyannote.audio", "sample/sample.wav"))
    assert rate == RATE
    sound_S = torch.from_numpy(sound).float() / 32768
    step = (len(sound_S) - FRAMES * FRAME) // (STRETCHES - 1)
    return [sound_S.unfold(0, FRAMES * FRAME, step)[:STRETCHES].contiguous()]


def score(model: nn.Module) -> float:
    """Frames heard as speech, where somebody speaks most of the time; of silence none is."""
    (sound_BS,) = batches()
    heard = float((model(sound_BS) > 0.5).float().mean())
    silence = float((model(torch.zeros(1, FRAMES * FRAME)) > 0.5).float().mean())
    return heard - silence
