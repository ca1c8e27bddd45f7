"""A detector distilled in a training loop of one's own: labelled boxes in, a plain torchvision detector out."""

import torch

from reldistill import Batch, Boxes, Detection, DetectorExtractor, build_distiller, load_detector

# %% Images, boxes and networks.
CLASSES = ["red", "green", "blue"]
SIDE = 96


def draw(count: int) -> Batch:
    """Noise with a rectangle of every colour, and where they are; here your own images and boxes come in."""
    images = 0.5 + 0.1 * torch.rand(count, 3, SIDE, SIDE)
    corners, labels, image_of = [], [], []
    for image in range(count):
        for row, label in enumerate(torch.randperm(3).tolist()):
            left, width, height = (int(torch.randint(low, high, ())) for low, high in ((0, 40), (20, 56), (16, 30)))
            top = 32 * row
            images[image, :, top : top + height, left : left + width] = torch.eye(3)[label][:, None, None]
            corners.append([left, top, left + width, top + height])
            labels.append(label)
            image_of.append(image)
    sizes = torch.full((count, 2), SIDE)  # height and width of each image inside the batch's padding
    boxes = Boxes(torch.tensor(corners).float(), torch.tensor(labels), torch.tensor(image_of), sizes)
    return Batch(images, boxes, torch.arange(count))


def detector(backbone: str) -> DetectorExtractor:
    """A detector of torchvision's; batches are small, so its backbone has group norm."""
    arguments = {"norm": "group", "fpn_channels": 64}
    loaded = load_detector(f"fcos_{backbone}_fpn", classes=CLASSES, min_size=SIDE, max_size=SIDE, arguments=arguments)
    return DetectorExtractor(loaded.module, outputs=loaded.outputs, name=loaded.name)


def average_precision(network: DetectorExtractor) -> float:
    """AP50 on the images that were not trained on."""
    evaluator = task.evaluator()
    evaluator.start("cpu")
    evaluator.update(network.eval(), held_out)
    return evaluator.values()["AP50"]


# %% A teacher, trained by its own losses.
torch.manual_seed(0)
loader, held_out = [draw(2) for _ in range(16)], draw(16)
task = Detection(CLASSES)

teacher = detector("mobilenet_v3_large")
optimizer = torch.optim.AdamW(teacher.parameters(), lr=0.002)
for _ in range(4):
    for batch in loader:
        optimizer.zero_grad()
        task(teacher(batch.images, targets=batch.targets), batch).backward()
        optimizer.step()
print(f"teacher AP50 {average_precision(teacher):.1f} %")

# %% A student, distilled.
student = detector("mobilenet_v3_small")
distiller = build_distiller("sekd", student=student, teacher=teacher, image_size=96, task=Detection(CLASSES))
optimizer = torch.optim.AdamW(distiller.trainable_parameters(), lr=0.002)
for epoch in range(1, 5):
    for batch in loader:
        step = distiller(batch)
        optimizer.zero_grad()
        step.total.backward()
        optimizer.step()
    print(f"epoch {epoch}", "  ".join(f"{name} {value:.3f}" for name, value in step.parts.items()))
print(f"student AP50 {average_precision(student):.1f} %")

# %% What comes out is a plain torchvision detector.
network = distiller.export()  # torchvision's FCOS, whose label 0 is the background's
found = network([held_out.images[0]])[0]
for box, label, score in zip(found["boxes"][:3], found["labels"], found["scores"], strict=False):
    print(f"{CLASSES[label - 1]} {score:.2f} at {[round(x) for x in box.tolist()]}")
