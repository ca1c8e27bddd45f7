"""Your own images, from a folder to a distilled student, by the functions behind `reldistill train` and `distill`."""

from pathlib import Path

from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from reldistill import DataSettings, ModelSettings, PairSettings, TrainSettings, distill, load_network, train

# %% A folder of class folders: here scans of digits are written into one; yours is there already.
digits = load_digits()
for number, (scan, label) in enumerate(zip(digits.images, digits.target, strict=True)):
    folder = Path("photos", f"digit-{label}")
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 / 16 * scan).astype("uint8")).resize((32, 32)).save(folder / f"{number:04}.png")

# %% A teacher of these classes. Published weights of any timm or torchvision network would be its better start.
data = DataSettings(data="photos", image_size=32, augment="crop")
budget = TrainSettings(epochs=4, batch_size=64, lr=0.1)
teacher = train(data, ModelSettings(model="resnet20"), budget, out=Path("runs/teacher"))
print(f"teacher {teacher.result.score_last:.1f} %")

# %% The same student alone and distilled: the difference is what the teacher brought.
for method in ("none", "serkd"):
    pair = PairSettings(teacher="runs/teacher", student="resnet8", method=method)
    record = distill(data, pair, budget, out=Path("runs", method))
    print(f"student by {method} {record.result.score_last:.1f} %")

# %% What is left: a page to look at, and weights of a bare network.
print(*sorted(path.name for path in Path("runs/serkd").iterdir() if path.suffix in (".html", ".safetensors")))
student = load_network("resnet8", num_classes=10).module
student.load_state_dict(load_file("runs/serkd/student.safetensors"))
