"""Packages that train: each takes a compiled model where it takes a model, and learns what it learns of eager torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pccompile

pytestmark = pytest.mark.slow


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 6, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def compare(train: Callable[[nn.Module], Any], make: Callable[[], nn.Module] = Net, tolerance: float = 1e-5) -> None:
    """Train a compiled model and a plain one, and compare their parameters."""
    torch.manual_seed(0)
    plain = make()
    model = copy.deepcopy(plain)
    before = [p.detach().clone() for p in plain.parameters()]
    for run in (plain, pccompile.compile(model, (data()[:4][0],))):
        torch.manual_seed(1)
        train(run)
    for p, q, old in zip(model.parameters(), plain.parameters(), before, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
        assert not torch.equal(p, old)


@pytest.mark.parametrize("settings", [{}, {"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 2}], ids=str)
def test_lightning(settings: dict[str, Any], tmp_path: Path) -> None:
    import lightning

    class Task(lightning.LightningModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            x, y = batch
            return F.cross_entropy(self.net(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    def train(net: nn.Module) -> None:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path, **quiet, **settings
        )
        trainer.fit(Task(net), DataLoader(data(), 8))

    compare(train)


def test_accelerate() -> None:
    from accelerate import Accelerator

    def train(net: nn.Module) -> None:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        run, optimizer, loader = accelerator.prepare(net, optimizer, DataLoader(data(), 8))
        for x, y in loader:
            with accelerator.accumulate(run):
                accelerator.backward(F.cross_entropy(run(x), y))
                accelerator.clip_grad_norm_(run.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
        assert accelerator.unwrap_model(run) is net

    compare(train)


class Rows(Dataset[dict[str, Tensor]]):
    """Sequences; the trainer drops what the signature of the model does not have."""

    extra = ("unread",)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        ids = torch.randint(17, (8,), generator=torch.Generator().manual_seed(i))
        return dict.fromkeys(("input_ids", "labels", *self.extra), ids)


def gpt() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 17, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **still, bos_token_id=0, eos_token_id=1))


def fitted(model: nn.Module, folder: Path, rows: Rows | None = None, callbacks: Any = None, **settings: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=4, max_steps=4, learning_rate=1e-2, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, logging_strategy="no", seed=0, **settings,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows or Rows(), callbacks=callbacks)
    trainer.train()
    return trainer


def agree(model: nn.Module, plain: nn.Module) -> None:
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_trainer_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain, model = gpt(), gpt()
    first = plain.transformer.wte.weight.detach().clone()
    fitted(plain, tmp_path)
    row = Rows()[0]["input_ids"][None].expand(4, -1)
    pc = pccompile.compile(model, (), {"input_ids": row, "labels": row})
    trainer = fitted(pc, tmp_path)
    agree(model, plain)
    assert not torch.equal(model.transformer.wte.weight, first)
    expected = plain.generate(row[:1, :3], max_new_tokens=4, do_sample=False)
    torch.testing.assert_close(pc.generate(row[:1, :3], max_new_tokens=4, do_sample=False), expected)
    pc.save_pretrained(tmp_path / "of_model")
    agree(AutoModelForCausalLM.from_pretrained(tmp_path / "of_model"), plain)
    with pytest.raises(
        RuntimeError, match="share memory"
    ):  # a class of transformers would be asked for its tied weights
        trainer.save_model(str(tmp_path / "of_trainer"))


def test_trainer_of_transformers_with_the_backend_of_torch_compile(tmp_path: Path) -> None:
    plain, model = gpt(), gpt()
    fitted(plain, tmp_path)
    rows = Rows()
    rows.extra = ()  # what torch.compile returns has no signature of its own
    fitted(torch.compile(model, backend="pccompile"), tmp_path, rows, remove_unused_columns=False)
    agree(model, plain)


def test_accelerate_has_a_closed_list_of_backends(tmp_path: Path) -> None:
    """So `torch_compile_backend="pccompile"` is refused by its name; the case above is the way."""
    with pytest.raises(ValueError, match="PCCOMPILE"):
        fitted(gpt(), tmp_path, torch_compile=True, torch_compile_backend="pccompile")


def test_ignite() -> None:
    from ignite.engine import create_supervised_trainer

    def train(net: nn.Module) -> None:
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        create_supervised_trainer(net, optimizer, F.cross_entropy).run(DataLoader(data(), 8), max_epochs=2)

    compare(train)


def test_skorch() -> None:
    from skorch import NeuralNetClassifier

    def train(net: nn.Module) -> None:
        x, y = (t.numpy() for t in data().tensors)
        how: dict[str, Any] = {"criterion": nn.CrossEntropyLoss, "lr": 0.1, "max_epochs": 2, "batch_size": 8}
        fit = NeuralNetClassifier(net, train_split=None, verbose=0, iterator_train__shuffle=False, **how).fit(x, y)
        assert fit.predict(x).shape == (32,)
        for mine, theirs in zip(net.parameters(), fit.module_.parameters(), strict=True):
            mine.data.copy_(theirs.data)

    compare(train)


def test_torchmetrics() -> None:
    from torchmetrics.classification import MulticlassAccuracy

    torch.manual_seed(0)
    model, (x, y) = Net(), data().tensors
    pc = pccompile.compile(model, (x,))
    metric = MulticlassAccuracy(3, average="micro")
    assert float(metric(pc(x), y)) == pytest.approx(float((model(x).argmax(1) == y).float().mean()))
