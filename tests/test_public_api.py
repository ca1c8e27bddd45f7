"""What `reldistill` offers by name, and what importing it costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import reldistill
import reldistill.losses

HEAVY = ("torch", "torchvision", "timm", "lightning", "sklearn", "matplotlib", "numpy", "rich")


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after some code."""
    code += "\nimport sys\nprint('modules:', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("modules:")[2].split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = modules_after("import reldistill\nassert reldistill.__version__\ndir(reldistill)")
    assert loaded.isdisjoint(HEAVY)


def test_the_commands_help_loads_no_torch() -> None:
    code = "import sys\nfrom reldistill.cli.main import main\nsys.argv = ['reldistill', '--help']\n"
    loaded = modules_after(f"{code}try:\n    main()\nexcept SystemExit as end:\n    assert not end.code")
    assert loaded.isdisjoint({"torch", "torchvision", "timm", "lightning"})


@pytest.mark.parametrize("package", ["reldistill.losses", "reldistill.relations"])
def test_the_mathematics_needs_no_networks_and_no_pictures(package: str) -> None:
    found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    loaded = modules_after(f"import {', '.join([package, *(module.name for module in found)])}")
    assert "torch" in loaded
    assert loaded.isdisjoint({"timm", "torchvision", "lightning", "matplotlib", "sklearn", "beartype"})


@pytest.mark.parametrize("name", reldistill.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(reldistill, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)
    assert name in dir(reldistill)
    assert getattr(reldistill, name) is value


def test_names_for_type_checkers_are_the_names_at_run_time() -> None:
    tree = ast.parse(Path(reldistill.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    named = {
        alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(named) == set(reldistill.__all__)
    assert list(reldistill.__all__) == sorted(reldistill.__all__)
    for name, module in named.items():
        assert getattr(importlib.import_module(module), name) is getattr(reldistill, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'reldistill' has no attribute 'Distilller'"):
        reldistill.Distilller  # noqa: B018
    with pytest.raises(ImportError):
        exec("from reldistill import nothing_of_that_name")
    assert not hasattr(reldistill, "Distilller")


def test_public_names_hide_no_module() -> None:
    folder = Path(reldistill.__file__).parent
    modules = {path.stem for path in folder.iterdir()}
    assert modules.isdisjoint(reldistill.__all__)


# `Features` are what a network outputs of a Batch.
OTHER_NAMES = {"features": "ProjectedFeatures"}


def class_of(short: str) -> list[str]:
    """The classes among the public losses that a method's short name stands for."""
    wanted = OTHER_NAMES.get(short, short.replace("_", "")).lower()
    return [name for name in reldistill.losses.__all__ if name.lower() == wanted]


def has_sizes(kind: str) -> bool:
    """Whether a loss learns or remembers something whose size its user states: a function would forget it."""
    parameters = inspect.signature(getattr(reldistill.losses, kind)).parameters.values()
    return any(parameter.default is parameter.empty for parameter in parameters)


def test_every_loss_has_a_class_and_a_function() -> None:
    folder = Path(reldistill.losses.__file__).parent
    for short in sorted(path.stem for path in folder.glob("[a-z]*.py")):
        names = class_of(short)
        assert len(names) == 1, short
        assert inspect.isclass(getattr(reldistill.losses, names[0]))
        if has_sizes(names[0]):
            assert f"{short}_loss" not in reldistill.losses.__all__
            continue
        assert inspect.isfunction(getattr(reldistill.losses, f"{short}_loss"))
        assert f"{short}_loss" in reldistill.losses.__all__


@pytest.mark.parametrize("name", [name for name in reldistill.losses.__all__ if name.endswith("_loss")])
def test_student_comes_before_teacher_and_all_else_by_name(name: str) -> None:
    parameters = list(inspect.signature(getattr(reldistill.losses, name)).parameters.values())
    assert [p.name for p in parameters[:2]] == ["student", "teacher"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])


def test_a_losss_class_and_function_have_the_same_settings() -> None:
    for name in reldistill.losses.__all__:
        if not name.endswith("_loss"):
            continue
        settings = list(inspect.signature(getattr(reldistill.losses, name)).parameters.values())[2:]
        (kind,) = class_of(name.removesuffix("_loss"))
        own = inspect.signature(getattr(reldistill.losses, kind)).parameters
        of_the_batch = [p for p in settings if p.name in ("labels", "indices", "progress")]
        assert all(p.default is p.empty for p in of_the_batch), "they are of the call, not a setting"
        assert {p.name: p.default for p in settings if p not in of_the_batch} == {n: p.default for n, p in own.items()}
