"""Audits at the end of real training runs of Lightning and transformers."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from analyzer.callbacks.after_training import AfterTraining

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PROBES = ["gradient_flow", "memory_horizon"]


class Net(nn.Module):
    """A small sequence classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def loader():
    inputs = torch.randn(96, 12, 1)
    return DataLoader(TensorDataset(inputs, (inputs[:, 3, 0] > 0).long()), 32)


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="pip install .[lightning]")
    from analyzer.callbacks.lightning import AuditCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self.log("loss", self.training_step(batch, _))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.01)

    attached = []
    audit = AuditCallback(loss="cross_entropy", probes=PROBES, attach=attached.append)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=1, callbacks=[audit], default_root_dir=tmp_path, accelerator="cpu", **quiet
    )
    module = Module()
    trainer.fit(module, loader(), loader())
    assert attached == [tmp_path / "audit" / "report.pdf"]
    assert attached[0].read_bytes().startswith(b"%PDF")
    assert audit.result.record.attrs["samples"] == 96
    assert module.net.lstm.training


@pytest.mark.parametrize("evaluates", [True, False])
def test_transformers(tmp_path, evaluates):
    transformers = pytest.importorskip("transformers", reason="pip install .[transformers]")
    from analyzer.callbacks.transformers import AuditCallback

    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    data = [
        {"input_ids": torch.randint(0, 30, (10,)), "labels": torch.tensor(index % 2)}
        for index in range(40)
    ]
    audit = AuditCallback(loss="cross_entropy", output="logits", probes=PROBES)
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        num_train_epochs=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        eval_strategy="epoch" if evaluates else "no",
    )
    model = transformers.BertForSequenceClassification(config)
    transformers.Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, callbacks=[audit]
    ).train()
    assert (tmp_path / "audit" / "report.pdf").exists() is evaluates
    assert (audit.result is not None) is evaluates
    if evaluates:
        assert audit.result.record.attrs["samples"] == 40


def test_what_goes_wrong_is_a_warning(tmp_path):
    request = AfterTraining(loss="cross_entropy", probes=["gradient_flow"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert request.run(Net(), None, tmp_path) is None
        assert request.run(Net(), [torch.ones(4, 12, 3)], tmp_path) is None
    messages = [str(warning.message) for warning in caught]
    assert messages[0] == "no audit: the training has not validated; let it, or give batches"
    assert messages[1].startswith(
        "no audit: the model, on the first batch of the audit data, raised"
    )
    assert [*tmp_path.iterdir()] == []
