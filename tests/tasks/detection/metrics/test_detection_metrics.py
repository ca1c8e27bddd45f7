from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddp_helpers import run_on_ranks
from drawn_results import random_results
from reldistill.tasks.detection.boxes import Boxes
from reldistill.tasks.detection.images import load_detection
from reldistill.tasks.detection.metrics.coco_ap import NAMES, coco_scores
from reldistill.tasks.detection.metrics.detection_metrics import DetectionMetrics
from reldistill.tasks.detection.metrics.detection_results import ImageResult, from_arrays, overlaps, to_arrays


def by_pycocotools(truth: dict, detections: list[dict]) -> dict[str, float]:
    """COCO's own evaluation code."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO()
        true.dataset = truth
        true.createIndex()
        evaluation = COCOeval(true, true.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: 100 * value if value >= 0 else np.nan for name, value in zip(NAMES, evaluation.stats, strict=True)}


def wide(box: np.ndarray) -> list[float]:
    return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]


def as_coco(images: list[ImageResult], classes: int) -> tuple[dict, list[dict]]:
    annotations: list[dict[str, Any]] = []
    detections = []
    for place, image in enumerate(images):
        for i, box in enumerate(image.true_boxes):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": place + 1,
                    "category_id": int(image.true_labels[i]) + 1,
                    "bbox": wide(box),
                    "area": float(image.areas[i]),
                    "iscrowd": int(image.ignored[i]),
                }
            )
        for box, score, label in zip(image.boxes, image.scores, image.labels, strict=True):
            detections.append(
                {"image_id": place + 1, "category_id": int(label) + 1, "bbox": wide(box), "score": float(score)}
            )
    categories = [{"id": label + 1, "name": str(label)} for label in range(classes)]
    images_there = [{"id": place + 1} for place in range(len(images))]
    return {"images": images_there, "annotations": annotations, "categories": categories, "info": {}}, detections


def assert_same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_coco_scores_are_those_of_pycocotools(seed: int, ties: bool) -> None:
    images = random_results(30, classes=4, seed=seed, ties=ties)
    assert any(image.ignored.any() for image in images)
    expected = by_pycocotools(*as_coco(images, 5))
    found = coco_scores(images, classes=5)  # the fifth class has no objects
    assert_same(found.values, expected)
    assert 5 < expected["ap"] < 95
    assert np.isnan(found.by_class[4])
    np.testing.assert_allclose(np.nanmean(found.by_class), expected["ap"], rtol=0, atol=1e-9)


def test_an_image_may_come_twice() -> None:
    """As in a bootstrap: the same as two images alike."""
    images = random_results(12, seed=4)
    chosen = [images[i] for i in (3, 3, 5, 7, 7, 7)]
    assert_same(coco_scores(chosen, classes=3).values, by_pycocotools(*as_coco(chosen, 3)))


def test_crowds_matter() -> None:
    images = random_results(30, seed=0)
    plain = [ImageResult(**{**vars(image), "ignored": np.zeros_like(image.ignored)}) for image in images]
    assert coco_scores(images, classes=3).values["ap"] != coco_scores(plain, classes=3).values["ap"]


def test_where_there_is_nothing() -> None:
    (empty,) = [image for image in random_results(40, seed=1) if not len(image.true_boxes) and len(image.boxes)][:1]
    for images in ([], [empty]):
        scores = coco_scores(images, classes=2)
        assert list(scores.values) == list(NAMES)
        assert all(np.isnan(value) for value in [*scores.values.values(), *scores.by_class])
    (image,) = [image for image in random_results(40, seed=1) if len(image.true_boxes) > 3][:1]
    nothing = ImageResult(
        **{**vars(image), "boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int)}
    )
    values = coco_scores([nothing], classes=3).values
    assert values["ap"] == values["ar100"] == 0


# ---------------------------------------------------------------- from tensors


def batch_of(images: list[ImageResult]) -> tuple[list[dict[str, torch.Tensor]], Boxes, torch.Tensor]:
    def join(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(image, name) for image in images]))

    rows = torch.arange(len(images)).repeat_interleave(torch.tensor([len(image.true_labels) for image in images]))
    sizes = torch.full((len(images), 2), 400)
    boxes = Boxes(join("true_boxes"), join("true_labels"), rows, sizes, join("ignored"), join("areas"))
    found = [
        {name: torch.from_numpy(getattr(image, name)) for name in ("boxes", "scores", "labels")} for image in images
    ]
    return found, boxes, torch.tensor([image.index for image in images])


def gathered(images: list[ImageResult], sizes: tuple[int, ...] = (7, 1, 12)) -> DetectionMetrics:
    metrics = DetectionMetrics(["a", "b", "c"])
    for size in sizes:
        metrics.update(*batch_of(images[:size]))
        images = images[size:]
    assert not images
    return metrics


def test_batches_in_any_order_give_the_same() -> None:
    images = random_results(20, seed=2, ties=True)
    metrics = gathered(images)
    expected = coco_scores(images, classes=3).values
    values = metrics.compute()
    assert_same({name: values[name] for name in NAMES}, expected)
    assert values.keys() - set(NAMES) == {"voc_ap", "voc_ap_11"}
    assert_same(gathered(images[::-1], (3, 17)).compute(), values)
    parts = [gathered(images[:9], (9,)), gathered(images[9:], (5, 6))]
    parts[0].merge(parts[1].images)
    assert_same(parts[0].compute(), values)
    parts[0].update(*batch_of(images[:2]))  # seen again: replaced, not counted twice
    assert_same(parts[0].compute(), values)


def test_boxes_without_areas_and_crowds() -> None:
    images = random_results(20, seed=2)
    metrics = DetectionMetrics(["a", "b", "c"])
    found, boxes, indices = batch_of(images)
    metrics.update(found, Boxes(boxes.corners, boxes.labels, boxes.images, boxes.sizes), indices)
    for image in metrics.images:
        assert not image.ignored.any()
        np.testing.assert_array_equal(image.areas, (image.true_boxes[:, 2:] - image.true_boxes[:, :2]).prod(axis=1))


def test_what_is_not_finite_is_left_out_and_wrong_labels_are_errors() -> None:
    images = random_results(20, seed=2)
    found, boxes, indices = batch_of(images)
    before = gathered(images).compute()
    extra = {"boxes": torch.tensor([[0, 0, torch.nan, 5], [0, 0, 5, 5.0]]), "scores": torch.tensor([0.9, torch.inf])}
    extra["labels"] = torch.zeros(2, dtype=torch.int64)
    more = [{name: torch.cat([one[name], extra[name]]) for name in extra} for one in found]
    metrics = DetectionMetrics(["a", "b", "c"])
    metrics.update(more, boxes, indices)
    assert_same(metrics.compute(), before)
    with pytest.raises(ValueError, match=r"labels: expected class indices 0 … 1, got 0 … 2"):
        DetectionMetrics(["a", "b"]).update(found, boxes, indices)
    with pytest.raises(ValueError, match="expected one entry for each of 20 images"):
        metrics.update(found[1:], boxes, indices)


def test_results_go_to_a_file_and_back(tmp_path: Path) -> None:
    images = random_results(20, seed=3)
    np.savez(tmp_path / "results.npz", **to_arrays(images))
    with np.load(tmp_path / "results.npz", allow_pickle=False) as arrays:
        again = from_arrays(arrays)
    assert len(again) == 20
    for ours, theirs in zip(again, images, strict=True):
        for name, value in vars(theirs).items():
            np.testing.assert_array_equal(getattr(ours, name), value)


def test_overlaps() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30.0]])
    np.testing.assert_allclose(overlaps(boxes, boxes)[0], [1, 25 / 175, 0])
    np.testing.assert_allclose(overlaps(boxes[:1], np.array([[0, 0, 20, 20.0]]), over_first=True), [[1]])


def gather_a_part(rank: int, world_size: int) -> dict[str, float]:
    images = random_results(20, seed=2, ties=True)
    metrics = DetectionMetrics(["a", "b", "c"])
    metrics.update(*batch_of(images[rank::world_size]))
    metrics.gather()
    return metrics.compute()


@pytest.mark.slow
def test_two_processes_know_what_both_found() -> None:
    expected = gathered(random_results(20, seed=2, ties=True)).compute()
    for found in run_on_ranks(gather_a_part):
        assert_same(found, expected)


# ---------------------------------------------------------------- real images


def test_on_coco_from_the_files_to_the_scores(tmp_path: Path) -> None:
    """Reader, batches and metric together give what pycocotools says of the annotation file itself."""
    shared = os.environ.get("RELDISTILL_DATA")
    if not shared:
        pytest.skip("RELDISTILL_DATA is not set: no real images to test on")
    source = Path(shared) / "coco256"
    truth = json.loads((source / "annotations" / "instances_val2017.json").read_text())
    for number, annotation in enumerate(truth["annotations"]):
        annotation["iscrowd"] = int(number % 11 == 0)  # these 128 images have no crowds of their own
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(truth))
    train = {**truth, "annotations": truth["annotations"][:50]}
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(train))
    (tmp_path / "images").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / "images" / split).symlink_to(source / "images" / "val2017")
    data = load_detection(f"coco:{tmp_path}", image_size=64, batch_size=16, workers=0)

    random = np.random.default_rng(0)
    detections = perturbed(truth, random)
    assert len(detections) > 1000
    by_image: dict[int, list[dict]] = {image["id"]: [] for image in truth["images"]}
    for detection in detections:
        by_image[detection["image_id"]].append(detection)
    category = {entry["id"]: place for place, entry in enumerate(truth["categories"])}
    metrics = DetectionMetrics(data.classes)
    for batch in data.val:
        found = []
        for index in batch.indices.tolist():
            mine = by_image[int(data.splits["val"].identities[index])]
            corners = torch.tensor([[d["bbox"][0], d["bbox"][1]] for d in mine]).reshape(-1, 2)
            sides = torch.tensor([d["bbox"][2:] for d in mine]).reshape(-1, 2)
            found.append(
                {
                    "boxes": torch.cat([corners, corners + sides], dim=1),
                    "scores": torch.tensor([d["score"] for d in mine]),
                    "labels": torch.tensor([category[d["category_id"]] for d in mine], dtype=torch.int64),
                }
            )
        metrics.update(found, batch.targets, batch.indices)
    values = metrics.compute()
    expected = by_pycocotools(truth, detections)
    assert 10 < expected["ap"] < 90
    for name, value in expected.items():
        assert abs(values[name] - value) < 1e-9, name


def perturbed(truth: dict, random: np.random.Generator) -> list[dict]:
    """The objects themselves, moved and scaled, some of them twice, some as another class, some not at all."""
    detections = []
    categories = [entry["id"] for entry in truth["categories"]]
    for annotation in truth["annotations"]:
        left, top, width, height = annotation["bbox"]
        for _ in range(int(random.integers(0, 4))):
            move, scale = random.normal(0, 0.1, 2), np.exp(random.normal(0, 0.1, 2))
            other = int(random.choice(categories))
            detections.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"] if random.random() < 0.85 else other,
                    "bbox": [left + move[0] * width, top + move[1] * height, width * scale[0], height * scale[1]],
                    "score": float(np.float32(random.random())),
                }
            )
    return detections
