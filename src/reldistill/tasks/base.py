"""What a task is: everything that runs, comparisons, reports, exports and the command know of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

from reldistill.core.checks import UserError
from reldistill.core.tasks import known_task, open_task
from reldistill.report.task_report import TaskReport
from reldistill.training.defaults import TrainDefaults

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from reldistill.core.types import Batch, Evaluator
    from reldistill.data.images import Images
    from reldistill.data.loader import Loader
    from reldistill.methods.build import TaskObjective, TermSource
    from reldistill.networks.cards import NetworkCard
    from reldistill.networks.saved import OpenedNetwork
    from reldistill.networks.zoo import ListedNetwork, Role
    from reldistill.training.settings import DataSettings, TrainSettings


@dataclass(frozen=True)
class FinishedRun:
    """What pictures of a run are made of, once it has ended.

    Args:
        folder: the run's.
        images: what it was trained and validated on.
        student: what was found of the student on the validation images, by the last epoch.
        teacher: the teacher, in eval mode; None for a run without one.
        teacher_measured: what was found of it on the same images.
        level: the teacher's level that is drawn; empty where no level is compared.
    """

    folder: Path
    images: Images
    student: Evaluator
    teacher: OpenedNetwork | None = None
    teacher_measured: Evaluator | None = None
    level: str = ""


@dataclass(frozen=True)
class GraphForm:
    """How a student becomes an ONNX graph, and how the graph is compared with the student.

    Args:
        network: images → tensors, in eval mode.
        example: images to trace it by.
        outputs: names of its tensors.
        options: for torch.onnx.export.
        compare: the graph, images → outputs → figures of how far it is from the network, `said` in words among them;
            UserError where it computes something else.
        properties: the file's metadata, name → text.
    """

    network: nn.Module
    example: Tensor
    outputs: Sequence[str]
    options: Mapping[str, Any]
    compare: Callable[[Callable[[np.ndarray], list[np.ndarray]]], dict[str, Any]]
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Companions:
    """Text files that stand beside exported weights, path → content, and the message about them."""

    files: Mapping[Path, str] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""


class Judgement(NamedTuple):
    """What was found of a teacher without class scores.

    Args:
        measured: the evaluator that was asked.
        said: what it found, in one line.
        score: what networks of the task are compared by, percent; None where there is no such measure of a teacher.
        fault: why nothing could be learned from it; None where something can.
    """

    measured: Evaluator
    said: str
    score: float | None
    fault: str | None = None


@runtime_checkable
class Measure(Protocol):
    """Asks an evaluator about a network, as training would run it."""

    def __call__(self, network: OpenedNetwork, batches: Loader, evaluator: Evaluator) -> Evaluator:
        """The evaluator, with its values found."""
        ...


Read = TypeVar("Read", bound="Images")
"""What a task reads: its own kind of images."""
Seen = TypeVar("Seen", bound="Images", contravariant=True)


@runtime_checkable
class Look(Protocol[Seen]):
    """What a network did on the test images. `score` is what networks are compared by, percent."""

    score: float
    calibration_error: float | None

    def __init__(self, network: OpenedNetwork, images: Seen, training: TrainSettings) -> None: ...

    def arrays(self) -> dict[str, np.ndarray]:
        """What a comparison keeps of a cell.

        `correct_last`, (n,) booleans, of a counted score; `drawn`, (draws,) scores of `report.draws.draws`, of others.
        """
        ...

    def reference_arrays(self) -> dict[str, np.ndarray]:
        """What it keeps of the teacher."""
        ...

    def beside(self, teacher: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """`agreement`, `calibration_error` and `correlation_gap` by the teacher's `reference_arrays`, or None.

        Asked for before `arrays` and `score`, which may depend on the teacher too.
        """
        ...

    @classmethod
    def features_of(cls, network: OpenedNetwork, images: Seen, training: TrainSettings) -> Iterator[np.ndarray]:
        """(m, D) features of a network that is drawn but not judged; nothing where features are not drawn."""
        ...

    @staticmethod
    def run_once(extractor: nn.Module, side: int) -> None:
        """A network's own work for one image."""
        ...

    @staticmethod
    def some_batch(images: Seen) -> Batch:
        """A few images to count a training step's operations by."""
        ...


@runtime_checkable
class Task(Protocol[Read]):
    """What images are labelled for.

    Args:
        name: for `--task`, and in records.
        data_help: how its data are named, for the error that meets data of another kind.
        report: what the report knows of it.
        defaults: how it is trained by default.
        drawn_level: which of several compared levels is drawn.
        keeps_teacher: whether a teacher's outputs for its images can be cached.
    """

    name: str
    data_help: str
    report: TaskReport
    defaults: TrainDefaults
    drawn_level: Literal["deepest", "finest"]
    keeps_teacher: bool

    @property
    def look(self) -> type[Look[Read]]:
        """What a network did on the test images."""
        ...

    @property
    def methods(self) -> TermSource:
        """Which terms each method has: what `objective` carries too."""
        ...

    # Data ------------------------------------------------------------------------------------------------------------

    def claims(self, data: str) -> bool:
        """Whether a data set's name alone marks it as this task's, e.g. `coco:DIR`."""
        ...

    def reads(self, data: str) -> bool:
        """Whether `--task` may ask for this task with such a data set; no other task claims it."""
        ...

    def read(
        self, data: DataSettings, *, batch_size: int, seed: int, workers: int | None, models: Sequence[str]
    ) -> Read:
        """The images, looked at once; `models` are the networks that will see them."""
        ...

    def summary(self, images: Read) -> str:
        """One line about the images."""
        ...

    # Networks --------------------------------------------------------------------------------------------------------

    def names_network(self, name: str) -> bool:
        """Whether that is the name of a network that only this task can open."""
        ...

    def claims_network(self, name: str) -> bool:
        """Whether only this task can open that network or that run's folder."""
        ...

    def networks(self) -> Sequence[ListedNetwork]:
        """The networks by name that only this task can open."""
        ...

    def open(
        self,
        name: str,
        *,
        role: Role,
        images: Read,
        image_size: int | None = None,
        weights: str | None = None,
        pretrained: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> OpenedNetwork:
        """A network for the images' classes."""
        ...

    def open_alone(
        self, name: str, *, num_classes: int | None, image_size: int | None, arguments: Mapping[str, Any]
    ) -> OpenedNetwork:
        """A network without images, to look at its levels."""
        ...

    def check_teacher(self, teacher: OpenedNetwork, found: Mapping[str, float], images: Read) -> None:
        """UserError where nothing could be learned from that teacher."""
        ...

    # Training and figures --------------------------------------------------------------------------------------------

    def objective(self, training: TrainSettings, images: Read) -> TaskObjective:
        """The student's own loss, how it is measured, and which terms each method has."""
        ...

    def measures(self, found: Mapping[str, float], images: int) -> dict[str, Any]:
        """What an evaluation reports: the evaluator's values on that many images, and how certain they are."""
        ...

    def in_brief(self, found: Mapping[str, float], images: int) -> str:
        """The score in a few words."""
        ...

    def in_words(self, found: Mapping[str, float], images: int) -> str:
        """`measures` in one line."""
        ...

    # What a run produces ---------------------------------------------------------------------------------------------

    def draw(self, run: FinishedRun) -> None:
        """Write what the report's sections show into the run's folder."""
        ...

    def graph(self, run: Path, *, source: Path, raw: bool) -> GraphForm:
        """A finished run's student as an ONNX graph.

        Args:
            run: the run's folder.
            source: the weights.
            raw: leave the normalisation out.
        """
        ...

    def companions(self, card: NetworkCard, target: Path) -> Companions:
        """What stands beside weights that are exported to `target`."""
        ...


@runtime_checkable
class TakesHeadless(Protocol[Seen]):
    """A task with this too takes networks without class scores as teachers."""

    def open_headless(
        self,
        name: str,
        *,
        role: Role,
        images: Seen,
        image_size: int | None = None,
        weights: str | None = None,
        pretrained: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> OpenedNetwork:
        """A network without its class scores, whatever their number."""
        ...

    def judged(self, teacher: OpenedNetwork, images: Seen, measure: Measure) -> Judgement:
        """What was found of such a teacher by its features."""
        ...


AnyTask: TypeAlias = Task[Any]
"""A task, whatever images it reads."""


def task_of(data: DataSettings) -> AnyTask:
    """The task that the images are labelled for."""
    return cast(AnyTask, open_task(data.task))


def takes_headless(task: AnyTask, *, teacher: str) -> TakesHeadless[Any]:
    """The task as one that takes teachers without class scores; UserError for others."""
    if not isinstance(task, TakesHeadless):
        raise UserError(f"the teacher {teacher} has no class scores, and a teacher for {task.name} needs class scores")
    return task


def task_named(name: str) -> AnyTask:
    """The task of that name."""
    return cast(AnyTask, known_task(name))
