from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reldistill.core.checks import UserError
from reldistill.report.run.relations_file import RELATIONS_FILE, read_relations, spectral_order, thin_out


def test_what_was_written_comes_back(tmp_path: Path, relations: dict) -> None:
    np.savez(tmp_path / RELATIONS_FILE, **relations)
    found = read_relations(tmp_path)
    assert found is not None
    assert found.level == "layer3:layer3"
    assert found.images is not None
    assert np.array_equal(found.images, relations["images"])


def test_no_file_is_no_error(tmp_path: Path) -> None:
    assert read_relations(tmp_path) is None


@pytest.mark.parametrize("name", ["images", "student_superpixels", "teacher_adjacency", "student_spectrum", "classes"])
def test_any_part_may_be_absent(tmp_path: Path, relations: dict, name: str) -> None:
    del relations[name]
    np.savez(tmp_path / RELATIONS_FILE, **relations)
    found = read_relations(tmp_path)
    assert found is not None
    assert getattr(found, name) is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", np.zeros((4, 32, 32), np.uint8), "is uint8 of shape"),
        ("images", np.zeros((4, 32, 32, 3), np.int32), "not uint8"),
        ("student_adjacency", np.zeros((4, 5), np.float32), "is not square"),
        ("student_adjacency", np.full((4, 4), np.nan, np.float32), "not finite"),
        ("student_superpixels", np.zeros((9, 8, 8), np.int16), "shows 9 images of 4"),
        ("teacher_superpixels", np.zeros((4, 0, 0), np.int16), "is empty"),
        ("classes", np.arange(3), "is int64"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, relations: dict, name: str, value, message: str) -> None:
    np.savez(tmp_path / RELATIONS_FILE, **{**relations, name: value})
    with pytest.raises(UserError, match=message) as error:
        read_relations(tmp_path)
    assert name in str(error.value)


def test_pickled_objects_are_refused(tmp_path: Path, relations: dict) -> None:
    np.savez(tmp_path / RELATIONS_FILE, **{**relations, "images": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(UserError, match="cannot read"):
        read_relations(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x93NUMPY"])
def test_broken_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RELATIONS_FILE).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_relations(tmp_path)
    assert "\n" not in str(error.value)


def test_spectral_order_brings_groups_together() -> None:
    members = np.random.default_rng(0).permutation(np.repeat([0, 1], 12))
    adjacency = np.where(members[:, None] == members, 0.9, 0.1)
    np.fill_diagonal(adjacency, 1.0)
    ordered = members[spectral_order(adjacency)]
    assert np.count_nonzero(np.diff(ordered)) == 1


@pytest.mark.parametrize("adjacency", [np.eye(1), np.eye(5), np.zeros((4, 4)), -np.ones((3, 3))])
def test_spectral_order_of_degenerate_graphs_is_a_permutation(adjacency: np.ndarray) -> None:
    assert sorted(spectral_order(adjacency)) == list(range(len(adjacency)))


def test_thin_out_takes_block_means() -> None:
    matrix = np.arange(36.0).reshape(6, 6)
    assert np.array_equal(thin_out(matrix, most=6), matrix)
    expected = matrix.reshape(3, 2, 3, 2).mean(axis=(1, 3))
    assert np.allclose(thin_out(matrix, most=3), expected)
    uneven = thin_out(np.ones((257, 257)), most=112)
    assert uneven.shape == (112, 112)
    assert np.allclose(uneven, 1)
