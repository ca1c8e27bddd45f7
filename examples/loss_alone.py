"""A relation loss in a training loop of one's own: it needs nothing but a feature map of student and teacher.

A teacher learns 1,200 scans of digits. Students see 100 of them, with and without the teacher's relations between the
superpixels of each image; the accuracy is that on 597 other scans.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from reldistill.losses import SeRKD

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
relations = SeRKD()


class Network(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * width, 10))


def train(student: Network, count: int, epochs: int, teacher: Network | None = None) -> Network:
    optimizer = torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9)
    for _ in range(epochs):
        for chosen in torch.randperm(count).split(20):
            student_map = student.body(images[chosen])
            task_loss = functional.cross_entropy(student.head(student_map), labels[chosen])
            if teacher is None:
                loss = task_loss
            else:
                with torch.no_grad():
                    teacher_map = teacher.body(images[chosen])
                loss = task_loss + 25 * relations(student_map, teacher_map)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student.eval()


@torch.no_grad()
def accuracy(network: Network) -> float:
    hits = network.head(network.body(images[1200:])).argmax(dim=1) == labels[1200:]
    return 100 * hits.float().mean().item()


torch.manual_seed(0)
teacher = train(Network(width=32), count=1200, epochs=6)
print(f"teacher              {accuracy(teacher):.1f} %")
for name, guide in (("students alone", None), ("students with SeRKD", teacher)):
    found = []
    for seed in range(1, 4):
        torch.manual_seed(seed)
        found.append(accuracy(train(Network(width=8), count=100, epochs=20, teacher=guide)))
    print(f"{name:20} {sum(found) / len(found):.1f} %  ({', '.join(f'{a:.1f}' for a in found)})")
