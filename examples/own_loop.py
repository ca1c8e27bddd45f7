"""The Distiller in a training loop of one's own: it finds levels and adapters, and says every part by name."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from reldistill import Classification, build_distiller

digits = load_digits()
scans = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
scans = functional.interpolate(scans, 32, mode="bilinear").expand(-1, 3, -1, -1)
classes = torch.tensor(digits.target)


def network(width: int) -> nn.Module:
    def stage(channels: int, width: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU())

    stages = (stage(3, width, 4), stage(width, 2 * width, 1), stage(2 * width, 4 * width, 1))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


@torch.no_grad()
def accuracy(network: nn.Module) -> float:
    hits = network.eval()(scans[1200:]).argmax(dim=1) == classes[1200:]
    return 100 * hits.float().mean().item()


torch.manual_seed(0)
loader = DataLoader(TensorDataset(scans[:1200], classes[:1200]), batch_size=64, shuffle=True)

teacher = network(width=24)
optimizer = torch.optim.Adam(teacher.parameters(), lr=0.003)
for _ in range(4):
    for images, labels in loader:
        optimizer.zero_grad()
        functional.cross_entropy(teacher(images), labels).backward()
        optimizer.step()
print(f"teacher {accuracy(teacher):.1f} %")

student = network(width=12)
distiller = build_distiller("serkd", student=student, teacher=teacher, image_size=32, task=Classification())
optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.1, momentum=0.9)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
for epoch in range(1, 9):
    for images, labels in loader:
        step = distiller((images, labels))
        optimizer.zero_grad()
        step.total.backward()
        optimizer.step()
    schedule.step()
    print(f"epoch {epoch}", "  ".join(f"{name} {value:.3f}" for name, value in step.parts.items()))
network = distiller.export()
print(f"student {accuracy(network):.1f} %")
