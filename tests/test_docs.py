"""What the documentation shows is what there is: snippets, commands, a page a method, figures from records."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from benchmarks.results_page import BEGIN, END, PAGE, README, page, readme

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
