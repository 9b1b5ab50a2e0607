"""Blocks and models in a file of the user's, and our layers in ultralytics."""

from __future__ import annotations

import contextlib
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

_LOADED: dict[str, tuple[Path, str]] = {}  # file and digest by the module it is imported as
_FOLDERS: set[str] = set()  # put on the path here


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
    if not path.is_file():
        raise ZooError(f"plugin {file}: there is no such file")
    if path.suffix != ".py" or not module.isidentifier() or module.startswith("__"):
        raise ZooError(f"plugin {file}: it cannot be imported; name it like my_block.py")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    if _LOADED.get(module) != (path, digest):
        _unload(module)
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)
        _FOLDERS.add(folder)
    importlib.invalidate_caches()  # the file may be a moment old
    with contextlib.suppress(OSError):  # code compiled in the same second would pass for current
        Path(importlib.util.cache_from_source(str(path))).unlink()
    _LOADED[module] = (path, digest)
    try:
        return _added(file, path, module, digest)
    except BaseException:
        _unload(module)
        raise


def _added(file: str | os.PathLike[str], path: Path, module: str, digest: str) -> list[str]:
    found = find_source(module)
    if found is None or found.resolve() != path:
        there = f"{found} is" if found else "something built in is"
        raise ZooError(f"plugin {file}: {there} imported as {module}; rename the file")
    source = f"{path}, sha256 {digest}"
    try:
        names = [
            *BLOCKS.add_file(path, module, source=source),
            *MODELS.add_file(path, module, source=source, family=module),
        ]
    except (ValueError, SyntaxError, TypeError) as error:
        raise ZooError(f"plugin {file}: {error}") from error
    if not names:
        raise ZooError(f'plugin {file} has no @zoo.block("name") and no @zoo.model("name")')
    return names


def _unload(module: str) -> None:
    """Forget a plugin, and its folder if no other one stands there."""
    if module not in _LOADED:
        return
    path, _ = _LOADED.pop(module)
    for registry in (BLOCKS, MODELS):
        registry.forget(module)
    imported = getattr(sys.modules.get(module), "__file__", None)
    if imported is not None and Path(imported).resolve() == path:
        del sys.modules[module]
    folder = str(path.parent)
    if folder in _FOLDERS and all(str(other.parent) != folder for other, _ in _LOADED.values()):
        _FOLDERS.discard(folder)
        if folder in sys.path:
            sys.path.remove(folder)


def add_to_ultralytics() -> None:
    """Let `ultralytics.YOLO(file.yaml)` know our layers, now or once it is imported.

    Importing `zoo.detection` adds them to its parser; that waits until the parser is there, so
    that importing the zoo imports neither ultralytics nor torch.
    """
    parser = "ultralytics.nn.tasks"
    if parser in sys.modules:
        importlib.import_module("zoo.detection")
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(parser, "zoo.detection"))


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
        loader = spec.loader

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # what stays is the loader's own
            loader.exec_module(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            importlib.import_module(self._then)

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
