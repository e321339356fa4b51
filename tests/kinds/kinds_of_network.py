"""Every kind of network that the product must be able to audit, by name."""

from collections.abc import Callable
from functools import partial

import feedforward
import recurrent
import trained

from analyzer import Subject

Make = Callable[[], Subject]

QUICK: dict[str, Make] = {
    "vgg": feedforward.vgg,
    "residual_18": feedforward.residual_18,
    "one_wide_layer": feedforward.one_wide_layer,
    "deep_sigmoid": feedforward.deep_sigmoid,
    "signal_filter": feedforward.signal_filter,
    "vanilla_rnn": recurrent.vanilla_rnn,
    "forgetting_lstm": recurrent.forgetting_lstm,
    "delay_lstm": recurrent.delay_lstm,
    "bidirectional_lstm": recurrent.bidirectional_lstm,
    "unshared_weights": recurrent.unshared_weights,
    "ragged_packed": recurrent.ragged_packed,
    "video": trained.video,
    "language_model": trained.language_model,
    "encoder_decoder": trained.encoder_decoder,
}
"""Kind -> makes the subject; what is planted is said where it is made."""

SLOW: dict[str, Make] = {
    "alexnet": feedforward.alexnet,
    "residual_110": feedforward.residual_110,
    "residual_1001": feedforward.residual_1001,
    "wide_residual": feedforward.wide_residual,
    "heartbeat_cnn": feedforward.heartbeat_cnn,
    "heartbeat_lstm": recurrent.heartbeat_lstm,
    "stacked_2": partial(recurrent.stacked, 2),
    "stacked_3": partial(recurrent.stacked, 3),
    "exploding_rnn": recurrent.exploding_rnn,
    "remembering_lstm": recurrent.remembering_lstm,
    "ragged_padded": recurrent.ragged_padded,
    "text_generator": trained.text_generator,
    "module_called_often": trained.module_called_often,
}
"""The rest, for tests that are marked slow."""

KINDS = QUICK | SLOW
