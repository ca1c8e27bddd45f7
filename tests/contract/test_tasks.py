"""What every task holds to, one row a task: ours, and the template of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drawn_boxes import draw_large, write_coco
from reldistill.core import tasks as table
from reldistill.core.checks import UserError
from reldistill.core.tasks import known_task
from reldistill.core.user_code import run_file
from reldistill.methods.build import build_distiller
from reldistill.methods.table import METHODS
from reldistill.runs.opening import measure
from reldistill.tasks.base import Task
from reldistill.training.settings import DataSettings, TrainSettings
from small_runs import write_images

pytestmark = pytest.mark.slow

TEMPLATE = Path(__file__).parents[2] / "docs" / "templates" / "my_task.py"


def _classes(folder: Path) -> str:
    write_images(folder / "pics", count=8)
    return str(folder / "pics")


def _boxes(folder: Path) -> str:
    write_coco(folder / "drawn", train=draw_large(6), val=draw_large(3, first=6))
    return f"coco:{folder / 'drawn'}"


@dataclass(frozen=True)
class Row:
    """A task, data for it in a folder, data that are not there, and a network that is quick."""

    task: Callable[[], Any]
    data: Callable[[Path], str]
    nothing: str
    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    labelled: bool = True


ROWS = {
    "classification": Row(lambda: known_task("classification"), _classes, "no/such/folder", "resnet8"),
    "detection": Row(
        lambda: known_task("detection"),
        _boxes,
        "coco:no/such/folder",
        "retinanet_resnet18_fpn",
        {"fpn_channels": 16, "norm": "group"},
        {"image_size": 64},
    ),
    "features": Row(
        lambda: known_task("features"),
        lambda folder: f"unlabelled:{_classes(folder)}",
        "unlabelled:no/such/folder",
        "resnet8",
        settings={"val_fraction": 0.3},
        labelled=False,
    ),
    "one's own": Row(
        lambda: run_file(TEMPLATE, what="the template").Discs(), lambda _: "discs:60", "discs:3", "resnet8"
    ),
}


@pytest.fixture(params=ROWS, ids=list(ROWS))
def row(request: pytest.FixtureRequest) -> Row:
    return ROWS[request.param]


@pytest.fixture
def task(row: Row, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(table, "_opened", dict(table._opened))
    found = row.task()
    if found.name not in table.task_names():
        table.register_task(found)
    return found


def read(task: Any, row: Row, data: str) -> Any:
    settings = DataSettings(data=data, **row.settings)
    assert settings.task == task.name, "the name of the data says which task they are for"
    return task.read(settings, batch_size=2, seed=0, workers=0, models=[row.model])


def test_it_has_all_that_a_task_has(task: Any) -> None:
    assert isinstance(task, Task)
    assert task.defaults.batch_size > 0
    for optimizer in ("sgd", "adamw"):
        assert task.defaults.lr_for(optimizer, 2 * task.defaults.batch_size) > 0
        assert task.defaults.weight_decay[optimizer] >= 0


def test_what_it_reads_is_the_same_every_time(task: Any, row: Row, tmp_path: Path) -> None:
    data = row.data(tmp_path)
    images, again = read(task, row, data), read(task, row, data)
    assert len(images.fingerprint) == 16
    assert images.fingerprint == again.fingerprint
    assert "\n" not in task.summary(images)
    assert f"{images.val.images:,}" in task.summary(images)
    for loader in (images.train, images.val):
        batch = next(iter(loader))
        assert (batch.targets is not None) == row.labelled
        assert batch.indices is not None
        assert 0 <= float(batch.images.min()) <= float(batch.images.max()) <= 1
    seen = [index for batch in images.val for index in batch.indices.tolist()]
    assert sorted(seen) == list(range(images.val.images))


def test_data_that_are_not_there_are_one_line(task: Any, row: Row) -> None:
    with pytest.raises(UserError) as error:
        task.read(DataSettings(data=row.nothing, task=task.name), batch_size=2, seed=0, workers=0, models=())
    assert "\n" not in str(error.value)


def test_its_score_is_measured(task: Any, row: Row, tmp_path: Path) -> None:
    images, training = read(task, row, row.data(tmp_path)), TrainSettings(batch_size=2)
    network = task.open(row.model, role="student", images=images, arguments=row.arguments)
    measured = measure(network, images.val, task.objective(training, images).evaluator())
    assert measured.score == task.report.score.name
    assert measured.score in measured.found
    assert measured.found[measured.score] <= 100
    for say in (task.in_brief, task.in_words):
        assert "\n" not in say(measured.found, images.val.images)
    json.dumps(task.measures(measured.found, images.val.images), allow_nan=False)
    name = measured.write(tmp_path)
    assert name is None or (tmp_path / name).is_file()


def test_every_method_is_built_or_refused_in_one_line(task: Any, row: Row, tmp_path: Path) -> None:
    images, training = read(task, row, row.data(tmp_path)), TrainSettings(batch_size=2)
    built, refused = [], []
    for method in METHODS:
        pair = [task.open(row.model, role="student", images=images, arguments=row.arguments) for _ in range(2)]
        try:
            distiller = build_distiller(
                method,
                student=pair[0].extractor,
                teacher=None if method == "none" else pair[1].extractor,
                image_size=images.image_size,
                task=task.objective(training, images),
                images=images.train.images,
            )
        except UserError as error:
            refused.append(str(error))
            continue
        built.append(method)
        assert bool(len(distiller.terms)) == (method != "none")
    assert {"serkd", "sekd", "fitnets"} <= set(built)
    assert ("none" in built) == row.labelled, "without labels there is nothing to learn alone"
    assert not [said for said in refused if "\n" in said]


def test_a_step_has_its_parts(task: Any, row: Row, tmp_path: Path) -> None:
    images, training = read(task, row, row.data(tmp_path)), TrainSettings(batch_size=2)
    student, teacher = (
        task.open(row.model, role="student", images=images, arguments=row.arguments).extractor for _ in range(2)
    )
    objective = task.objective(training, images)
    distiller = build_distiller(
        "fitnets", student=student, teacher=teacher, image_size=images.image_size, task=objective
    ).train()
    step = distiller(next(iter(images.train)))
    assert step.parts.keys() - {"pooled"} == ({"task", "fitnets"} if row.labelled else {"fitnets"})
    step.total.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in student.parameters())
