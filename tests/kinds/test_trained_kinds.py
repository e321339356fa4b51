"""What the reports on networks that were trained for a few seconds must say."""

import pytest
import trained

from analyzer.findings import Severity


def test_the_video_network_remembers_the_frame_that_says_the_class(audited):
    found = audited("video")
    # Replacing all frames before the cue costs nothing, the cue itself everything.
    cue = trained.FRAMES - 1 - trained.CUE
    assert found.one("memory-horizon").value == cue
    assert found.one("lag-use").value == cue
    assert found.one("decision-lag").value >= cue
    assert found.severity("gradient-over-time") is Severity.PASS
    # Frames are samples to the convolutions: fields are those of one frame.
    assert found.one("theoretical-field").value == 8
    assert "of 12 x 12 positions" in found.one("theoretical-field").message


def test_a_language_model_looks_back_a_few_characters(audited):
    found = audited("language_model")
    intact = float(found.trace("memory_horizon").attrs["intact_loss"])
    assert intact < 2.5  # a uniform guess costs 3.6
    assert 2 <= found.one("memory-horizon").value <= 20
    assert found.severity("gradient-over-time") is Severity.WARN
    assert found.record.attrs["objective"] == "cross_entropy, per sample"


@pytest.mark.slow
def test_a_text_generator_is_followed_through_what_it_writes(audited):
    found = audited("text_generator")
    trace = found.trace("timestep_gradient")
    # 20 characters are read, and 7 of the 8 written are read again.
    assert trace.sizes["timestep"] == 27
    assert [str(name) for name in trace["layer"].to_numpy()] == ["model.lstm.l0", "model.lstm.l1"]
    assert found.record.attrs["objective"] == (
        "cross_entropy to the model's own most probable class (no targets were given)"
    )


def test_the_last_symbol_written_needs_the_first_one_read(audited):
    found = audited("encoder_decoder")
    assert float(found.trace("memory_horizon").attrs["intact_loss"]) < 1
    horizon = found.one("memory-horizon")
    assert horizon.value == trained.COPIED - 1
    assert "or more timesteps back" in horizon.message
    layers = [str(name) for name in found.trace("timestep_gradient")["layer"].to_numpy()]
    assert layers == ["encoder.l0", "decoder.l0"]


@pytest.mark.slow
def test_a_module_that_is_called_often_is_one_layer_in_time(audited):
    trace = audited("module_called_often").trace("timestep_gradient")
    assert [str(name) for name in trace["layer"].to_numpy()] == ["encoder.l0", "decoder.l0"]
    known = trace["hidden_gradient"].notnull().any("sample").sum("timestep").to_numpy()
    assert known.tolist() == [trained.COPIED] * 2
