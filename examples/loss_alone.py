"""A relation loss in a training loop of one's own: it needs nothing but a feature map of student and teacher."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from reldistill.losses import SeRKD

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)


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


@torch.no_grad()
def accuracy(network: Network) -> float:
    network.eval()
    hits = network.head(network.body(images[1200:])).argmax(dim=1) == labels[1200:]
    network.train()
    return 100 * hits.float().mean().item()


# %% A teacher, trained on the labels alone.
torch.manual_seed(0)
teacher = Network(width=32)
optimizer = torch.optim.Adam(teacher.parameters(), lr=0.003)
for _ in range(3):
    for batch in torch.randperm(1200).split(60):
        optimizer.zero_grad()
        functional.cross_entropy(teacher.head(teacher.body(images[batch])), labels[batch]).backward()
        optimizer.step()
print(f"teacher {accuracy(teacher):.1f} %")

# %% A student, trained on the labels and on the relations inside the teacher's map.
student = Network(width=8)
teacher.eval()
relations = SeRKD()
optimizer = torch.optim.Adam(student.parameters(), lr=0.003)
for epoch in range(1, 6):
    for batch in torch.randperm(1200).split(60):
        student_map = student.body(images[batch])
        with torch.no_grad():
            teacher_map = teacher.body(images[batch])
        task_loss = functional.cross_entropy(student.head(student_map), labels[batch])
        loss = task_loss + 25 * relations(student_map, teacher_map)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    parts = relations.parts(student_map.detach(), teacher_map)
    gaps = "  ".join(f"{name} {value:.4f}" for name, value in parts.items())
    print(f"epoch {epoch}  task {task_loss:.3f}  gap to the teacher: {gaps}")
print(f"student {accuracy(student):.1f} %")
