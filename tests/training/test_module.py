"""The Lightning module in anybody's Trainer, with anybody's loader of (images, labels)."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from reldistill.core.checks import UserError
from reldistill.core.types import Batch, ClassLabels
from reldistill.methods.build import build_distiller
from reldistill.methods.plan import Choices
from reldistill.tasks.classification.objective import Classification
from reldistill.training.checkpoint import pack, restore, unpack
from reldistill.training.module import DistillationModule

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|log_every_n_steps|eval mode|LeafSpec|but have no)"
)


class Small(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(2, width), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(2, 2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(images)).mean(dim=(2, 3)))


def make(method: str = "kd", *, weights: dict[str, float] | None = None, **settings: Any) -> DistillationModule:
    torch.manual_seed(0)
    distiller = build_distiller(
        method,
        student=Small(4),
        teacher=Small(8),
        image_size=8,
        task=Classification(),
        choices=Choices(weights=weights or {}),
    )
    return DistillationModule(distiller, **{"optimizer": "sgd", "lr": 0.05, **settings})


def loader(count: int = 24, batch_size: int = 8) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, images.mean(dim=(2, 3)).argmax(dim=1)), batch_size=batch_size)


def trainer(**settings: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", **{**quiet, "max_epochs": 2, "enable_model_summary": False, **settings})


def test_trains_the_student_and_leaves_the_teacher_alone() -> None:
    module = make("serkd+sekd", weights={"serkd.angle": 1.0})
    before = copy.deepcopy(module.distiller.state_dict())
    trainer().fit(module, loader(), loader())
    after = module.distiller.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not [name for name in changed if name.startswith("teacher.")]
    assert [name for name in changed if name.startswith("student.")]
    assert [name for name in changed if name.startswith("adapters.")]
    assert module.batches_done == module.total_batches == 6
    assert module.progress == 1.0


def test_validation_logs_accuracy_in_percent_and_cross_entropy() -> None:
    module, batches = make(), loader(20)
    run = trainer()
    run.validate(module, batches, verbose=False)
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    with torch.no_grad():
        logits = module.exported()(images)
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    assert found["val/accuracy"] == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()), abs=1e-4)
    assert found["val/loss"] == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-5)


class Means(L.Callback):
    """Collects the epoch's means as the run's keeper does, and every batch's total."""

    def __init__(self) -> None:
        self.totals: list[float] = []
        self.rates: list[float] = []
        self.means: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.totals.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DistillationModule)
        self.means.append(module.part_means())


def test_part_means_are_of_their_epoch_and_add_up() -> None:
    means = Means()
    trainer(callbacks=[means]).fit(make("kd+rkd"), loader())
    for epoch, found in enumerate(means.means):
        assert found["total"] == pytest.approx(sum(means.totals[3 * epoch : 3 * epoch + 3]) / 3, rel=1e-5)
        assert found["total"] == pytest.approx(sum(v for k, v in found.items() if k != "total"), rel=1e-5)
    assert set(means.means[0]) == {"task", "kd", "rkd.distance", "rkd.angle", "total"}


def test_learning_rate_follows_progress() -> None:
    means = Means()
    module = make(schedule="step", milestones=[0.5], lr_warm_up=0.0, lr=0.2)
    trainer(callbacks=[means]).fit(module, loader())
    assert means.rates == pytest.approx([0.2] * 3 + [0.02] * 3)


def test_checkpoints_of_ones_own_trainer_hold_no_teacher_and_load(tmp_path: Path) -> None:
    module = make()
    run = trainer(max_epochs=1)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "own.ckpt")
    saved = torch.load(tmp_path / "own.ckpt", weights_only=True)
    assert not [name for name in saved["state_dict"] if "teacher" in name]
    other = make(lr=0.01)
    trainer(max_epochs=2).fit(other, loader(), ckpt_path=tmp_path / "own.ckpt", weights_only=True)
    assert other.batches_done == 6


def test_a_loss_that_is_not_finite_names_batch_and_part() -> None:
    module = make()
    with torch.no_grad():
        module.distiller.teachers["teacher"].network.head.bias.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"the loss is not finite at batch 1, in kd: lower"):
        trainer().fit(module, loader())


def test_a_part_that_outweighs_the_task_is_warned_of_once() -> None:
    module = make(weights={"kd": 1e5}, lr=1e-9)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(max_epochs=60).fit(module, loader())
    ours = [str(w.message) for w in caught if "more than a hundred times" in str(w.message)]
    assert len(ours) == 1
    assert ours[0].startswith("kd is ")
    assert module.notes == ours


@pytest.mark.parametrize(
    ("method", "size", "idle"), [("rkd", 1, {"rkd.distance", "rkd.angle"}), ("pkt", 1, {"pkt"}), ("rkd", 8, set())]
)
def test_a_part_that_is_zero_by_construction_is_warned_of_once(method: str, size: int, idle: set[str]) -> None:
    module = make(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(max_epochs=3).fit(module, loader(8, size))
    said = [note for note in module.notes if "was 0 in every batch of an epoch" in note]
    assert sorted(note.partition(" ")[0] for note in said) == sorted(idle)


def test_a_part_that_does_not_count_yet_is_not_idle() -> None:
    module = make()
    (term,) = module.distiller.terms
    module.batches_done, module.total_batches = 3, 10
    term.curriculum = lambda progress: float(progress > 0.25)
    module._watch_idle({"kd": 0.0, "task": 0.0})
    assert module.notes == []


def test_moving_average_is_what_is_validated_and_exported() -> None:
    module = make(ema_decay=0.75, schedule="constant", lr_warm_up=0.0)
    seen: list[Tensor] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            assert isinstance(module, DistillationModule)
            seen.append(module.distiller.student.network.head.weight.detach().clone())  # type: ignore[union-attr]

    trainer(max_epochs=1, callbacks=[Watch()]).fit(module, loader())
    average = seen[0]
    for weight in seen[1:]:
        average = 0.75 * average + 0.25 * weight
    exported = module.exported()
    torch.testing.assert_close(exported.head.weight.detach(), average)
    assert not torch.equal(exported.head.weight, seen[-1])
    images = torch.rand(4, 3, 8, 8)
    said = module.student(images).logits
    torch.testing.assert_close(said, exported(images))


def test_accumulated_gradients_step_the_average_once_a_step() -> None:
    module = make(ema_decay=0.5)
    trainer(max_epochs=1, accumulate_grad_batches=2).fit(module, loader(32))
    assert module.ema is not None
    assert int(module.ema.n_averaged) == 2


def test_a_batch_may_be_a_pair_or_a_batch() -> None:
    module = make()
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    for batch in ((images, labels), [images, labels], Batch(images, ClassLabels(labels))):
        moved = module.transfer_batch_to_device(batch, torch.device("cpu"), 0)
        assert torch.equal(moved.images, images)
        assert torch.equal(moved.targets.labels, labels)


@pytest.mark.parametrize(
    ("task", "part", "warned"),
    [(0.02, 1.99, False), (0.02, 2.01, True), (0.02, -2.01, True), (-0.02, 1.99, False), (-0.02, 2.01, True)],
)
def test_a_part_outweighs_the_task_beyond_a_hundredfold(
    task: float, part: float, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, notes = make(), []
    monkeypatch.setattr(module, "note", notes.append)
    for _ in range(2):
        module._watch({"task": torch.tensor(task), "kd": torch.tensor(part), "rkd": torch.tensor(0.0)})
    assert [note.partition(",")[0] for note in notes] == ([f"kd is {part}"] if warned else [])


def test_a_resumed_run_does_not_warn_again(tmp_path: Path) -> None:
    def fitted(module: DistillationModule) -> L.Trainer:
        run = trainer(max_epochs=1)
        run.fit(module, loader())
        return run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = make(weights={"kd": 1e5}, lr=1e-9), make(weights={"kd": 1e5}, lr=1e-9)
        (tmp_path / "last.ckpt").write_bytes(pack(first, fitted(first), {}))
        run = fitted(second)
    assert second.warned == first.warned == {"kd"}
    second.warned, second.notes = set(), []
    restore(unpack(tmp_path / "last.ckpt"), second, run)
    assert second.warned == {"kd"}
    assert second.notes == first.notes != []
