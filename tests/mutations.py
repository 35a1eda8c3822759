"""Wrong sciences put into the real code, so that the checks of a folder can be seen to catch them.

A mutation is a change of text in one module. The changed source is loaded as a module of its own,
and everything that it defines takes the place of the original wherever the code refers to it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@dataclass(frozen=True)
class Mutation:
    """One wrong science."""

    module: ModuleType
    right: str
    """Text that stands exactly once in the module."""
    wrong: str
    """What it is replaced by."""
    check: Callable[[], Any]
    """The check that must fail."""


def put_into_place(
    module: ModuleType,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    modules: Sequence[ModuleType],
) -> None:
    """Load `source` and let its classes, functions and numbers stand for those of `module`."""
    path = folder / f"mutated_{module.__name__.rpartition('.')[2]}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    mutated = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, mutated)  # dataclasses look themselves up
    spec.loader.exec_module(mutated)
    for name, original in list(vars(module).items()):
        replacement = vars(mutated).get(name)
        if name.startswith("__") or replacement is original:
            continue
        for place in modules:
            if vars(place).get(name) is original:
                monkeypatch.setattr(place, name, replacement)


def assert_caught(
    mutation: Mutation,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    modules: Sequence[ModuleType],
) -> None:
    """The mutation's check fails once it is in place."""
    source = Path(str(mutation.module.__file__)).read_text()
    assert source.count(mutation.right) == 1, f"{mutation.right!r} stands not once: mend this test"
    changed = source.replace(mutation.right, mutation.wrong)
    put_into_place(mutation.module, changed, monkeypatch, folder, modules)
    with pytest.raises(AssertionError):
        mutation.check()


def assert_right_source_passes(
    module: ModuleType,
    mutations: Sequence[Mutation],
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    modules: Sequence[ModuleType],
) -> None:
    """It is a mutation that a check catches, not the way in which it is put into place."""
    source = Path(str(module.__file__)).read_text()
    put_into_place(module, source, monkeypatch, folder, modules)
    for check in {mutation.check for mutation in mutations if mutation.module is module}:
        check()
