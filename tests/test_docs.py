"""What the documentation shows is what there is: snippets, commands, a page a method, figures from records."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from benchmarks.pictures.__main__ import FOLDER, PICTURES
from benchmarks.results_page import BEGIN, END, PAGE, README, page, readme

from benchmarks import import_graph
from reldistill.cli import table as cli
from reldistill.cli.forms import Command, Group
from reldistill.methods.table import METHODS
from reldistill.training.settings import PairSettings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPET = re.compile(r"<!-- example: (\w+) -->\n```python\n(.*?)```", re.DOTALL)
BASH = re.compile(r"```bash\n(.*?)```", re.DOTALL)


def _statements(source: str) -> list[str]:
    return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]


def _commands() -> list[tuple[str, str]]:
    found = []
    for document in PAGES:
        for block in BASH.findall(document.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                for command in line.split("#")[0].split("&&"):
                    if command.strip().startswith("reldistill "):
                        found.append((document.name, command.strip()))
    return found


@pytest.mark.parametrize(("name", "snippet"), SNIPPET.findall((ROOT / "README.md").read_text(encoding="utf-8")))
def test_readme_snippets_are_in_the_examples_that_the_tests_run(name: str, snippet: str) -> None:
    example = _statements((ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8"))
    for statement in _statements(snippet):
        assert statement in example, f"README shows a line that examples/{name}.py does not run: {statement}"


def test_readme_shows_every_example() -> None:
    names = {name for name, _ in SNIPPET.findall((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert names == {path.stem for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize(("document", "command"), _commands())
def test_commands_in_the_documentation_parse(document: str, command: str) -> None:
    words = shlex.split(command.split(">")[0])[1:]
    if "…" in words:
        # The elided part stands for the required options.
        place = words.index("…")
        required = {"--data": "digits", "--teacher": "runs/teacher", "--student": "resnet8", "--out": "runs/x"}
        words[place : place + 1] = [w for option in required.items() if option[0] not in words for w in option]
    chosen: Command | Group = cli.COMMANDS[words[0]]
    prog, rest = f"reldistill {words[0]}", words[1:]
    while isinstance(chosen, Group):
        chosen, prog, rest = chosen.members()[rest[0]], f"{prog} {rest[0]}", rest[1:]
    chosen.options(prog).parse(rest)


def test_there_are_commands_to_parse() -> None:
    assert len(_commands()) > 10


def test_every_method_has_a_row_on_the_overview_page() -> None:
    text = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert f"`{name}`" in text
    assert PairSettings(teacher="a", student="b").method in METHODS


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for document in (ROOT / "docs").rglob("*.md"):
        assert document.relative_to(ROOT / "docs").as_posix() in navigation


def test_results_page_says_what_the_records_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m benchmarks.results_page"


def test_the_readmes_table_says_what_the_records_say() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text == readme(), "run: python -m benchmarks.results_page"


METHOD_PAGES = sorted(path for path in (ROOT / "docs" / "methods").glob("*.md") if path.stem != "index")
NAMES = sorted({name for path in PAGES for name in re.findall(r"`(reldistill(?:\.\w+)+)`", path.read_text("utf-8"))})


@pytest.mark.parametrize("page_of", METHOD_PAGES, ids=lambda path: path.stem)
def test_a_methods_page_has_its_equation_and_its_picture(page_of: Path) -> None:
    text = page_of.read_text(encoding="utf-8")
    assert re.search(r"^\$\$ .*? \$\$$", text, re.DOTALL | re.MULTILINE)
    assert f"(../pictures/{page_of.stem}.svg)" in text


def test_every_picture_is_drawn_by_the_script_and_needs_nothing_else() -> None:
    assert set(PICTURES) == {path.stem for path in METHOD_PAGES}
    drawn = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.svg")}
    assert set(drawn) == {*PICTURES, "opening-light", "opening-dark", "imports"}
    for name, svg in drawn.items():
        assert svg.startswith("<svg "), name
        addresses = re.findall(r"https?://[^\"' )]+", svg)
        assert set(addresses) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, name
    assert sum(len(svg) for svg in drawn.values()) < 1.7e6


def test_the_picture_of_the_imports_is_what_the_code_says() -> None:
    assert import_graph.PICTURE.read_text("utf-8") == import_graph.picture(), "run: python -m benchmarks.import_graph"


def test_the_picture_leaves_out_what_follows_from_others_only() -> None:
    edges = {("cli", "runs"), ("cli", "core"), ("runs", "core"), ("cli", "data"), ("core", "runs")}
    assert import_graph.shown(edges) == {("cli", "runs"), ("runs", "core"), ("cli", "data"), ("core", "runs")}


@pytest.mark.parametrize("name", NAMES)
def test_names_in_the_pages_are_in_the_package(name: str) -> None:
    words = name.split(".")
    found = importlib.import_module(words[0])
    for place, word in enumerate(words[1:], start=2):
        is_module = getattr(found, "__path__", None) and importlib.util.find_spec(".".join(words[:place]))
        found = importlib.import_module(".".join(words[:place])) if is_module else getattr(found, word)


def test_the_walk_names_the_way() -> None:
    assert len(NAMES) > 40
