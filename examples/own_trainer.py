"""The Lightning module in a Trainer of one's own, with plain loaders of (images, labels)."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from reldistill import DistillationModule
from reldistill.methods.build import build_distiller
from reldistill.tasks.classification.objective import Classification

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
images = functional.interpolate(images, 32, mode="bilinear").expand(-1, 3, -1, -1)
labels = torch.tensor(digits.target)
train_loader = DataLoader(TensorDataset(images[:1200], labels[:1200]), batch_size=64, shuffle=True)
val_loader = DataLoader(TensorDataset(images[1200:], labels[1200:]), batch_size=256)


def network(width: int) -> nn.Module:
    def stage(channels: int, width: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU())

    stages = (stage(3, width, 4), stage(width, 2 * width, 1), stage(2 * width, 4 * width, 1))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


lightning.seed_everything(0)
teacher = network(width=24)
distiller = build_distiller("none", student=teacher, image_size=32, task=Classification())
lightning.Trainer(max_epochs=3).fit(DistillationModule(distiller), train_loader, val_loader)

student = network(width=12)
distiller = build_distiller("serkd", student=student, teacher=teacher, image_size=32, task=Classification())
module = DistillationModule(distiller, optimizer="sgd", lr=0.1)
lightning.Trainer(max_epochs=10).fit(module, train_loader, val_loader)
accuracy = module.trainer.callback_metrics["val/accuracy"]
print(f"student {accuracy:.1f} % after {module.trainer.current_epoch} epochs")
torch.save(distiller.export().state_dict(), "student.pth")
