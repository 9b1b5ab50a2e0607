"""What a Python file says without being run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Definition = ast.FunctionDef | ast.ClassDef


def find_source(module: str) -> Path | None:
    """Find the file of a dotted module name without importing it or its packages."""
    searched: Sequence[str] | None = None
    origin = None
    parts = module.split(".")
    for i in range(len(parts)):
        name = ".".join(parts[: i + 1])
        specs = (finder.find_spec(name, searched) for finder in sys.meta_path)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or (searched is None and i > 0):
            return None
        origin, searched = spec.origin, spec.submodule_search_locations
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def decorated(path: Path, decorator: str) -> Iterator[tuple[str, dict[str, Any], Definition]]:
    """Yield name, literal facts and definition of each `@decorator("name", ...)` in a file.

    Raises:
        ValueError: a name or a fact is not a literal.
    """
    for node in ast.parse(path.read_bytes()).body:
        if not isinstance(node, Definition):
            continue
        for call in node.decorator_list:
            if not isinstance(call, ast.Call) or _last_name(call.func) != decorator:
                continue
            try:
                name = ast.literal_eval(call.args[0])
                facts = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
            except (ValueError, IndexError) as error:
                raise ValueError(
                    f"{path}:{call.lineno}: @{decorator} needs a name and literal facts, "
                    "since they are read without importing the file"
                ) from error
            yield name, facts, node


def _last_name(node: ast.expr) -> str | None:
    """Return `b` for `b` and for `a.b`."""
    return getattr(node, "id", None) or getattr(node, "attr", None)


def definitions(body: Iterable[ast.stmt]) -> dict[str, ast.stmt]:
    """Names that statements define, assign or import; "*" stands for a star import.

    A name that is defined twice, or in a branch, maps to a statement that is no definition: which
    one holds is not known before the file runs.
    """
    found: dict[str, ast.stmt] = {}
    for node in body:
        names: Iterable[str] = ()
        if isinstance(node, Definition):
            names = (node.name,)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = ((a.asname or a.name).partition(".")[0] for a in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            inside = (n for target in targets for n in ast.walk(target))
            names = (n.id for n in inside if isinstance(n, ast.Name))
        else:
            for part in ("body", "orelse", "finalbody", "handlers", "cases"):
                for inner in getattr(node, part, ()):
                    body_of = inner.body if part in ("handlers", "cases") else [inner]
                    found |= dict.fromkeys(definitions(body_of), node)
        for name in names:
            found[name] = ast.Pass() if name in found else node
    return found


def options_of_source(node: Definition, leading: int = 0) -> tuple[str, ...] | None:
    """Keyword arguments of a function or of a class's `__init__`.

    Args:
        leading: arguments, beside `self`, that are no options.
    Returns:
        None if it takes any, or if a class inherits its `__init__`.
    """
    function = node
    if isinstance(node, ast.ClassDef):
        inits = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
        if not inits:
            return None
        function, leading = inits[0], leading + 1
    assert isinstance(function, ast.FunctionDef)  # noqa: S101 - narrows the type
    if function.args.kwarg:
        return None
    return tuple(a.arg for a in function.args.args[leading:] + function.args.kwonlyargs)
