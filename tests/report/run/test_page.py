from __future__ import annotations

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import reldistill.report
from reldistill.core.checks import UserError
from reldistill.report.record import DataRecord, Result, TermRecord, write_record
from reldistill.report.run.render import render_html

VOID = {"meta", "br", "image", "use", "path", "line", "circle", "link", "rect"}


class Page(HTMLParser):
    """Checks nesting while it collects ids, references and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "xlink:href", "src"):
                self.references.append(value)
            assert not name.startswith("on"), "no event handlers"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def rendered(runs: Path, out: Path) -> tuple[str, Page]:
    text = render_html([runs], out).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def whole(quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    """The page of a whole quickstart."""
    return rendered(quickstart, tmp_path_factory.mktemp("page") / "deep" / "report.html")


def test_the_page_of_many_runs_is_whole(whole: tuple[str, Page]) -> None:
    text, page = whole
    for name in ("verdict", "comparison", "curves", "superpixels", "graphs", "reproduce", "warnings"):
        assert name in page.ids
    words = " ".join(page.words)
    for piece in (
        "+5.0 ±3.5",
        "One seed each",
        "rkd.angle",
        "reldistill distill --data digits --method sekd",
        "5f3a5f3a",
    ):
        assert piece in words
    assert text.count('class="plot"') == 1 + 6 + 5 * 4, (
        "accuracy, parts of each run, three matrices and a spectrum each"
    )
    assert len(text) < 3_000_000


def test_nothing_is_fetched_and_nothing_runs(whole: tuple[str, Page]) -> None:
    text, page = whole
    assert not re.search(r"https?://|//[a-z]+\.", re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", text))
    assert page.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "img"})
    assert all(r.startswith(("#", "data:image/")) for r in page.references)
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_ids_are_unlike_and_every_reference_has_its_target(whole: tuple[str, Page]) -> None:
    text, page = whole
    assert len(page.ids) == len(set(page.ids))
    targets = {r[1:] for r in page.references if r.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert targets
    assert targets <= set(page.ids)


def test_images_are_in_the_page_once(whole: tuple[str, Page]) -> None:
    text, _ = whole
    assert len(re.findall(r'<image id="image-[^>]*href="data:', text)) == 4
    shown = len(re.findall(r'<use href="#image-', text))
    assert shown == 4 * (1 + 1 + 5), "the image, the teacher once, five students"


def test_the_same_records_give_the_same_page(quickstart: Path, whole: tuple[str, Page], tmp_path: Path) -> None:
    assert rendered(quickstart, tmp_path / "report.html")[0] == whole[0]


def test_agreement_of_the_superpixels(tmp_path: Path, make_record, relations: dict) -> None:
    write_record(tmp_path, make_record("serkd"))
    relations["student_superpixels"] = relations["teacher_superpixels"].copy()
    relations["student_superpixels"][:2] += 100
    np.savez(tmp_path / "relations.npz", **relations)
    _, page = rendered(tmp_path, tmp_path / "report.html")
    assert "serkd, 50\u00a0%" in page.words


def test_names_are_escaped(tmp_path: Path, make_record, relations: dict) -> None:
    evil = "<script>alert(1)</script>\"'&"
    record = make_record(
        "kd",
        notes=[evil],
        command=["reldistill", evil],
        settings={evil: evil, "epochs": 8},
        environment={evil: evil},
        data=DataRecord(evil, [evil] * 10, 1, 360, 8, 0, evil),
        terms=[TermRecord(evil, {evil: 1.0}, evil, evil)],
        version=evil,
        created=evil,
    )
    record.method = record.student.name = record.teacher.name = evil
    for epoch in record.history:
        epoch.train[evil] = 0.1
    write_record(tmp_path, record)
    np.savez(tmp_path / "relations.npz", **{**relations, "classes": np.array([evil] * 10), "level": np.array(evil)})
    text, page = rendered(tmp_path, tmp_path / "report.html")
    assert "<script" not in text
    assert "script" not in page.tags
    assert evil in " ".join(page.words)


def test_a_dollar_sign_is_not_mathematics(tmp_path: Path, make_record) -> None:
    write_record(tmp_path, make_record("$\\frac{"))
    text, _ = rendered(tmp_path, tmp_path / "report.html")
    assert "$\\frac{" in text


@pytest.mark.parametrize(
    "missing", ["images", "superpixels", "adjacency", "spectrum", "labels", "student_", "teacher_"]
)
def test_any_picture_may_be_absent(tmp_path: Path, make_record, relations: dict, missing: str) -> None:
    write_record(tmp_path, make_record("serkd"))
    np.savez(tmp_path / "relations.npz", **{k: v for k, v in relations.items() if missing not in k})
    _, page = rendered(tmp_path, tmp_path / "report.html")
    assert ("superpixels" in page.ids) == (missing not in ("images", "superpixels"))
    assert "graphs" in page.ids


def test_networks_of_different_widths_and_grids(tmp_path: Path, make_record, relations: dict) -> None:
    write_record(tmp_path, make_record("serkd"))
    relations["student_adjacency"] = -np.eye(10, dtype=np.float32)
    relations["student_superpixels"] = np.zeros((4, 7, 5), dtype=np.int16)
    np.savez(tmp_path / "relations.npz", **relations)
    text, page = rendered(tmp_path, tmp_path / "report.html")
    assert "student − teacher" not in text
    assert "serkd" in page.words, "no agreement is claimed between different grids"


def test_without_pictures_and_with_broken_ones(tmp_path: Path, make_record) -> None:
    for name in ("kd", "rkd"):
        write_record(tmp_path / name, make_record(name))
    (tmp_path / "kd" / "relations.npz").write_bytes(b"broken")
    _, page = rendered(tmp_path, tmp_path / "report.html")
    assert "superpixels" not in page.ids
    assert "its pictures are left out" in " ".join(page.words)


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_a_single_run_that_has_just_begun(tmp_path: Path, make_record, epochs: int) -> None:
    record = make_record("serkd", status="running", result=Result())
    record.history = record.history[:epochs]
    write_record(tmp_path, record)
    _, page = rendered(tmp_path, tmp_path / "report.html")
    assert "curves" in page.ids
    assert "still running" in " ".join(page.words)


def test_losses_that_are_zero_negative_or_no_numbers(tmp_path: Path, make_record) -> None:
    record = make_record("serkd")
    for epoch, value in zip(record.history, (0.0, -1.0, float("nan"), float("inf"), 1.0, 1.0, 1.0, 1.0), strict=True):
        epoch.train["kd"] = value
        epoch.train["task"] = 0.0
        epoch.val["accuracy"] = float("nan") if value < 0 else epoch.val["accuracy"]
    write_record(tmp_path, record)
    rendered(tmp_path, tmp_path / "report.html")


def test_warnings_name_their_runs(tmp_path: Path, make_record) -> None:
    for name in ("kd", "rkd"):
        write_record(tmp_path / name, make_record(name, notes=["a part outweighs the task loss"]))
    write_record(tmp_path / "none", make_record("none", data=DataRecord("d", ["a", "b"], 9, 360, 8, 3, "f")))
    words = " ".join(rendered(tmp_path, tmp_path / "report.html")[1].words)
    assert re.search(
        r"a part outweighs the task loss\s+\(kd, rkd\)|a part outweighs the task loss\s+\(rkd, kd\)", words
    )
    assert "3 unreadable images were left out" in words


def test_the_page_says_what_of_the_data_is_not_used(tmp_path: Path, make_record) -> None:
    record = make_record("kd")
    record.data.left_out = {".heic files": 3, "files in <b>extra/": 1}
    write_record(tmp_path / "kd", record)
    text, page = rendered(tmp_path, tmp_path / "report.html")
    assert "Not used: 3 .heic files" in " ".join(page.words)
    assert "<b>extra" not in text


def test_the_page_says_what_differs_between_runs_once(tmp_path: Path, make_record) -> None:
    for seed in (0, 1):
        write_record(tmp_path / str(seed), make_record("kd", seed=seed))
    text, _ = rendered(tmp_path, tmp_path / "report.html")
    assert text.count("<dt>batch_size</dt>") == 1
    assert text.count("--method kd --out runs/kd</code>") == 1
    assert "<dt>kd · seed 0, kd · seed 1</dt>" in text
    assert "<th>seed</th>" in text


def test_an_old_page_is_replaced_and_a_folder_is_refused(tmp_path: Path, make_record) -> None:
    write_record(tmp_path / "kd", make_record("kd"))
    (tmp_path / "report.html").write_text("old")
    text, _ = rendered(tmp_path / "kd", tmp_path / "report.html")
    assert "old" not in text[:20]
    with pytest.raises(UserError, match="it is a folder; name a new file"):
        render_html([tmp_path / "kd"], tmp_path)


def test_report_imports_no_torch() -> None:
    for path in Path(reldistill.report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("torch", "torchvision", "timm", "lightning") for name in names), path
    code = "import sys, reldistill.report.run.render; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
