"""Settings that are written once, as a dataclass; what each loss's own are is tested beside the loss."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest

from reldistill.losses._settings import Settings, takes


@dataclass(frozen=True)
class Drawn(Settings):
    count: int = 3
    share: float = 0.5
    upside_down: bool = False
    colour: Literal["red", "blue"] = "red"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "share")
        self.check_at_least(1, "count")


@takes(Drawn)
def draw(student: str, teacher: str, *, settings: Drawn) -> tuple[str, str, Drawn]:
    """What is drawn."""
    return student, teacher, settings


def test_a_function_takes_the_fields_by_keyword() -> None:
    assert draw("s", "t") == ("s", "t", Drawn())
    assert draw("s", teacher="t", count=5, colour="blue") == ("s", "t", Drawn(count=5, colour="blue"))
    assert draw("s", "t", settings=Drawn(share=2)) == ("s", "t", Drawn(share=2.0))
    with pytest.raises(TypeError, match="'colours'"):
        draw("s", "t", colours="blue")


def test_the_signature_and_the_docstring_are_the_functions_own() -> None:
    student, teacher, *fields = inspect.signature(draw).parameters.values()
    assert (student.name, teacher.name) == ("student", "teacher")
    assert [(p.name, p.default) for p in fields] == [
        ("count", 3),
        ("share", 0.5),
        ("upside_down", False),
        ("colour", "red"),
    ]
    assert all(p.kind is p.KEYWORD_ONLY for p in fields)
    assert fields[3].annotation == Literal["red", "blue"]
    assert inspect.getdoc(draw) == "What is drawn."


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 1.0}, "count must be a whole number, got 1.0"),
        ({"count": True}, "count must be a whole number, got True"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"share": "much"}, "share must be a number, got 'much'"),
        ({"share": True}, "share must be a number, got True"),
        ({"share": 0}, "share must be above 0, got 0"),
        ({"share": float("nan")}, "share must be above 0, got nan"),
        ({"upside_down": 1}, "upside_down must be true or false, got 1"),
        ({"colour": "green"}, "colour must be one of red, blue, got 'green'"),
        ({"colour": ["red"]}, r"colour must be one of red, blue, got \['red'\]"),
    ],
)
def test_what_is_no_such_setting_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Drawn(**given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        draw("s", "t", **given)


COMPILED = """
import torch
from reldistill.losses import sekd_loss, serkd_loss
student, teacher = torch.rand(2, 2, 6, 4, 4)
for loss, settings in ((sekd_loss, {"rank": 2}), (serkd_loss, {"cell": 1})):
    compiled = torch.compile(lambda s, t: loss(s, t, **settings), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(student, teacher), loss(student, teacher, **settings))
"""


def test_functions_that_take_settings_are_compiled_in_one_graph() -> None:
    """In a process whose annotations are not checked: dataclasses are made inside."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
