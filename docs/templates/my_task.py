"""A task of your own in one file: the radius of a disc, from an image of it.

    reldistill train --task my_task.py:Discs --data discs:600 --model resnet8 --out runs/teacher
    reldistill compare --task my_task.py:Discs --data discs:600 --teacher runs/teacher --student resnet8 \\
        --methods none fitnets serkd --out runs/compare

`reldistill.tasks.base.Task` says what each part is for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from reldistill import Batch, UserError
from reldistill.core.types import Features, FeatureSource, Wanted
from reldistill.data.images import test_loader
from reldistill.data.loader import BatchPlan, Loader
from reldistill.methods.build import LevelTerms
from reldistill.networks.cards import NetworkCard
from reldistill.networks.saved import OpenedNetwork, open_network
from reldistill.networks.zoo import ListedNetwork, Role
from reldistill.relations.across_ranks import sum_over_ranks
from reldistill.report.draws import draws
from reldistill.report.record import RunRecord
from reldistill.report.task_report import Score, Section, TaskReport
from reldistill.tasks.base import Companions, FinishedRun, GraphForm
from reldistill.training.defaults import DEFAULTS
from reldistill.training.settings import DataSettings, TrainSettings

SIDE = 16
GUESSES = "guesses.npy"
SHOWN = "discs.json"


# Images and what they are labelled with ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Radii:
    """What a batch is labelled with: (B,) radii, shares of the image's side."""

    values: Tensor

    def for_loss(self, name: str, images: Tensor) -> Tensor | None:
        """Nothing that a loss of the library takes by keyword."""
        return None

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Radii:
        """The same on another device."""
        return Radii(self.values.to(device, non_blocking=non_blocking))


class DiscPixels:
    """Discs in memory; see `reldistill.data.loader.Pixels`."""

    def __init__(self, count: int, *, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.radii = torch.from_numpy(random.uniform(0.1, 0.45, count)).float()
        centre = torch.from_numpy(random.uniform(0.45, 0.55, (count, 2, 1, 1))).float()
        places = (torch.arange(SIDE) + 0.5) / SIDE
        far = ((places[:, None] - centre[:, 0]) ** 2 + (places[None, :] - centre[:, 1]) ** 2).sqrt()
        noise = torch.from_numpy(random.uniform(0.0, 0.3, (count, 3, SIDE, SIDE))).float()
        self.images = 0.7 * (far < self.radii[:, None, None]).float()[:, None] + noise

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, seed: int, epoch: int, plans: Sequence[BatchPlan]) -> Iterator[Batch]:
        """The planned batches, in order."""
        for plan in plans:
            mine = plan.indices[plan.mine]
            yield Batch(self.images[mine], Radii(self.radii[mine]), mine)

    def close(self) -> None:
        """Nothing runs."""


@dataclass(frozen=True)
class DiscImages:
    """See `reldistill.data.images.Images`."""

    name: str
    train: Loader
    val: Loader
    test: Loader | None
    fingerprint: str
    classes: tuple[str, ...] = ()
    image_size: int = SIDE
    skipped: tuple[str, ...] = ()
    augment: str = "none"
    left_out: Mapping[str, int] = field(default_factory=dict)


# What is minimised, and how it is measured ---------------------------------------------------------------------------


class RadiusError(nn.Module):
    """The mean squared error of the radius."""

    methods = LevelTerms("disc sizes")

    def forward(self, student: Features, batch: Batch) -> Tensor:
        """Scalar."""
        return functional.mse_loss(guesses(student), batch.targets_as(Radii).values)

    def evaluator(self) -> Explained:
        """What measures a network that does this."""
        return Explained()


class Explained:
    """The share of the radii's variance that a network explains, percent; see `reldistill.core.types.Evaluator`."""

    score = "explained"

    def __init__(self) -> None:
        self.start("cpu")

    def start(self, device: torch.device | str) -> None:
        """Forget everything."""
        self.rows: list[Tensor] = []
        self.found: dict[str, float] = {}

    @torch.no_grad()
    def update(self, network: FeatureSource, batch: Batch) -> None:
        """Measure one batch."""
        guess = guesses(network.ask(batch.images, Wanted()))
        self.rows.append(torch.stack([guess.double(), batch.targets_as(Radii).values.double()], dim=1).cpu())

    def values(self) -> dict[str, float]:
        """`explained` and `error`; every process has to ask."""
        self.pairs = torch.cat(self.rows)
        guess, truth = self.pairs.unbind(dim=1)
        wrong = (guess - truth).square().sum()
        sums = torch.stack([wrong, truth.sum(), truth.square().sum(), torch.ones_like(truth).sum()])
        wrong, total, squares, count = sum_over_ranks(sums).tolist()
        self.found = {"explained": 100 * (1 - wrong / (squares - total**2 / count)), "error": wrong / count}
        return self.found

    def write(self, folder: Path) -> str:
        """Keep every guess beside the truth, for intervals by draws of the images."""
        np.save(folder / GUESSES, self.pairs.numpy())
        return GUESSES


def guesses(features: Features) -> Tensor:
    """The one number that a network predicts for each image."""
    if features.logits is None:
        raise ValueError("the radius is read off the logits: ask for them")
    return features.logits[:, 0].float()


def explained(pairs: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(draws,) percent of the variance explained in draws of images; `times` as `reldistill.report.draws` has them."""
    guess, truth = pairs.T
    count = times.sum(axis=1)
    variance = times @ truth**2 - (times @ truth) ** 2 / count
    return 100 * (1 - times @ (guess - truth) ** 2 / variance)


class DiscLook:
    """The one look at the test images; see `reldistill.tasks.base.Look`."""

    calibration_error: float | None = None

    def __init__(self, network: OpenedNetwork, images: DiscImages, training: TrainSettings) -> None:
        measured = Explained()
        for batch in test_loader(images):
            measured.update(network.extractor.eval(), batch)
        self.score = measured.values()["explained"]
        self.pairs = measured.pairs.numpy()

    def arrays(self) -> dict[str, np.ndarray]:
        """The scores of draws of the images, the same draws for all."""
        return {"drawn": explained(self.pairs, draws(len(self.pairs)))}

    reference_arrays = arrays

    def beside(self, teacher: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """Nothing."""
        return {"agreement": None, "calibration_error": None, "correlation_gap": None}

    @classmethod
    def features_of(cls, network: OpenedNetwork, images: DiscImages, training: TrainSettings) -> Iterator[np.ndarray]:
        """None are drawn."""
        yield from ()

    @staticmethod
    def run_once(extractor: FeatureSource, side: int) -> None:
        """One image."""
        extractor.ask(torch.rand(1, 3, side, side), Wanted())

    @staticmethod
    def some_batch(images: DiscImages) -> Batch:
        """Four images."""
        pixels = DiscPixels(4, seed=0)
        return Batch(pixels.images, Radii(pixels.radii), torch.arange(4))


# What the report shows -----------------------------------------------------------------------------------------------


def drawn(record: RunRecord) -> np.ndarray | None:
    """The scores of draws of the validation images; None where they are not on record."""
    path = None if record.folder is None or record.result.by_image is None else record.folder / record.result.by_image
    if path is None or not path.is_file():
        return None
    pairs = np.load(path)
    return explained(pairs, draws(len(pairs)))


def _read(folder: Path) -> list[list[float]] | None:
    path = folder / SHOWN
    return json.loads(path.read_text()) if path.is_file() else None


def _section(runs: Mapping[str, list[list[float]]]) -> str:
    rows = "".join(
        f"<tr><td>{name}</td>{''.join(f'<td>{guess:.2f} of {truth:.2f}</td>' for guess, truth in found)}</tr>"
        for name, found in runs.items()
    )
    return f'<section><h2 id="discs">Some discs</h2><table class="plain">{rows}</table></section>' if rows else ""


class Discs:
    """The radius of a disc; see `reldistill.tasks.base.Task`."""

    name = "disc sizes"
    data_help = "discs are given as discs:COUNT, how many to draw"
    report = TaskReport(
        Score("explained", counted=False),
        "The share of the radii's variance that a network explains, with 95 % intervals over draws of the images.",
        draws=drawn,
        sections=(Section(_read, _section),),
    )
    defaults = DEFAULTS
    drawn_level: Literal["deepest", "finest"] = "deepest"
    keeps_teacher = True
    look = DiscLook
    methods = RadiusError.methods

    def claims(self, data: str) -> bool:
        """`discs:COUNT`."""
        return data.startswith("discs:")

    reads = claims

    def read(
        self, data: DataSettings, *, batch_size: int, seed: int, workers: int | None, models: Sequence[str]
    ) -> DiscImages:
        """Draw them."""
        count = data.data.removeprefix("discs:")
        if not count.isdecimal() or int(count) < 2 * batch_size:
            raise UserError(f"data {data.data}: give discs:COUNT with at least two batches of {batch_size}")
        held_out = max(int(int(count) * data.val_fraction), 2)

        def loader(images: int, number: int) -> Loader:
            pixels = DiscPixels(images, seed=number)
            return Loader(pixels, batch_size=batch_size, training=number == 0, seed=seed)

        test = loader(held_out, 2) if data.hold_out_test else None
        return DiscImages(data.data, loader(int(count), 0), loader(held_out, 1), test, f"{int(count):016x}")

    def summary(self, images: DiscImages) -> str:
        """One line about the images."""
        return f"{images.name}: {images.train.images:,} training and {images.val.images:,} validation images"

    def names_network(self, name: str) -> bool:
        """None of its own."""
        return False

    def claims_network(self, name: str) -> bool:
        """None of its own."""
        return False

    def networks(self) -> Sequence[ListedNetwork]:
        """None of its own."""
        return ()

    def open(
        self,
        name: str,
        *,
        role: Role,
        images: DiscImages,
        image_size: int | None = None,
        weights: str | None = None,
        pretrained: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> OpenedNetwork:
        """A network with one number where a classifier has its class scores."""
        return open_network(
            name,
            role=role,
            num_classes=1,
            image_size=image_size or images.image_size,
            weights=weights,
            pretrained=pretrained,
            arguments=arguments,
        )

    def open_alone(
        self, name: str, *, num_classes: int | None, image_size: int | None, arguments: Mapping[str, Any]
    ) -> OpenedNetwork:
        """The same without images."""
        return open_network(name, role="model", num_classes=1, image_size=image_size, arguments=arguments)

    def check_teacher(self, teacher: OpenedNetwork, found: Mapping[str, float], images: DiscImages) -> None:
        """UserError where predicting the mean radius is as good."""
        if found["explained"] <= 0:
            raise UserError(f"the teacher {teacher.card.name} explains none of the radii's variance: train it first")

    def objective(self, training: TrainSettings, images: DiscImages) -> RadiusError:
        """The mean squared error."""
        return RadiusError()

    def measures(self, found: Mapping[str, float], images: int) -> dict[str, float]:
        """What an evaluation reports."""
        return dict(found)

    def in_brief(self, found: Mapping[str, float], images: int) -> str:
        """The score in a few words."""
        return f"{found['explained']:.1f} % of the radii's variance explained in {images} validation images"

    in_words = in_brief

    def draw(self, run: FinishedRun) -> None:
        """A few guesses beside the truth."""
        if isinstance(run.student, Explained):
            (run.folder / SHOWN).write_text(json.dumps(run.student.pairs[:4].tolist()))

    def graph(self, run: Path, *, source: Path, raw: bool) -> GraphForm:
        """Images (B, 3, H, W) → radius (B, 1)."""
        opened = open_network(str(run), role="model", num_classes=None, image_size=None, weights=str(source))
        network, images = opened.extractor.network.eval(), torch.rand(2, 3, SIDE, SIDE)

        def compare(graph: Callable[[np.ndarray], list[np.ndarray]]) -> dict[str, Any]:
            with torch.no_grad():
                apart = float(np.abs(graph(images.numpy())[0] - network(images).numpy()).max())
            if apart > 1e-4:
                raise UserError(f"the graph's radii differ from the network's by {apart:.1g}: not written")
            return {"largest_difference": apart, "said": f"radii, at most {apart:.1e} from PyTorch's"}

        how = {"dynamo": True, "external_data": False, "dynamic_shapes": ({0: torch.export.Dim("batch")},)}
        return GraphForm(network, images, ("radius",), how, compare)

    def companions(self, card: NetworkCard, target: Path) -> Companions:
        """Nothing stands beside the weights."""
        return Companions()
