"""Blocks and models in a file of the user's, and our layers in ultralytics."""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from zoo.registry import ZooError
from zoo.source import find_source
from zoo.spec import BLOCKS, MODELS

_LOADED: dict[str, tuple[Path, str]] = {}  # path and digest by module


def load_plugin(file: str | os.PathLike[str]) -> list[str]:
    """Add the `@zoo.block("name")` and `@zoo.model("name")` of a file to the zoo.

    The file is read, and imported when one of them is built: under its own name, with its folder
    on the path, so that a checkpoint that ultralytics pickled finds the class again. A file that
    has changed, or another one of the same name, takes the place of the one before.

    Returns:
        The names added.
    Raises:
        ZooError: it is no file, holds none, or a name is taken.
    """
    path = Path(file).resolve()
    module = path.stem
    if not path.is_file() or path.suffix != ".py" or not module.isidentifier():
        raise ZooError(f"plugin {file} is not a Python file that can be imported, e.g. my_block.py")
    this = (path, hashlib.sha256(path.read_bytes()).hexdigest()[:12])
    before = _LOADED.get(module, this)
    if before != this:
        sys.modules.pop(module, None)
        if str(before[0].parent) in sys.path:
            sys.path.remove(str(before[0].parent))
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    found = find_source(module)
    if found is None or found.resolve() != path:
        there = f"{found} is" if found else "something built in is"
        raise ZooError(f"plugin {file}: {there} imported as {module}; rename the file")
    source = f"{path}, sha256 {this[1]}"
    try:
        names = [
            *BLOCKS.add_file(path, module, source=source),
            *MODELS.add_file(path, module, source=source, family=module),
        ]
    except (ValueError, SyntaxError, TypeError) as error:
        raise ZooError(f"plugin {file}: {error}") from error
    if not names:
        raise ZooError(f'plugin {file} has no @zoo.block("name") and no @zoo.model("name")')
    _LOADED[module] = this
    return names


def add_to_ultralytics() -> None:
    """Let `ultralytics.YOLO(file.yaml)` know our layers, now or once it is imported.

    Importing `zoo.models._yolo` adds them to its parser; that waits until the parser is there, so
    that importing the zoo imports neither ultralytics nor torch.
    """
    parser = "ultralytics.nn.tasks"
    if parser in sys.modules:
        importlib.import_module("zoo.models._yolo")
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(parser, "zoo.models._yolo"))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Imports one module after another, however that is found.

    Args:
        module: dotted name of the first.
        then: of the second.
    """

    def __init__(self, module: str, then: str) -> None:
        self._module, self._then, self._looking = module, then, False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the module as others do, with the other import behind its own."""
        if fullname != self._module or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking = False
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            importlib.import_module(self._then)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
