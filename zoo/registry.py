"""A registry that fills itself by reading a package, without importing it.

Every file of `package` may hold functions or classes under a decorator such as
`@model("dat_tiny", params=28_319_138)`. The names and facts are read from the source text, so
listing them costs milliseconds and imports neither torch nor the file. The file is imported when
one of its entries is loaded. Facts must therefore be literals. Code outside the package (a
user's own file) registers through the same decorator when it is imported.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar


class ZooError(ValueError):
    """A name, option or size that cannot work; the message says what would."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What is known of an entry before it is imported.

    Args:
        name: what a user types.
        module: where the entry is defined.
        attribute: its name in that module.
        options: keyword arguments that it takes; None if it takes any.
        summary: first line of its docstring.
        aliases: short names for it.
        entry: the function or class itself, where it is already imported.
    """

    name: str
    module: str
    attribute: str
    options: tuple[str, ...] | None = ()
    summary: str = ""
    aliases: tuple[str, ...] = ()
    entry: Any = dataclasses.field(default=None, compare=False, repr=False)

    def load(self) -> Any:
        """Return the function or class, importing its module if need be."""
        return self.entry or getattr(importlib.import_module(self.module), self.attribute)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse keyword arguments that the entry does not take.

        Raises:
            ZooError: an option is unknown.
        """
        for given in options:
            if self.options is not None and given not in self.options:
                takes = ", ".join(self.options) or "no options"
                near = _near(given, self.options)
                raise ZooError(f"{self.name} has no option {given!r}{near}; it takes: {takes}")


S = TypeVar("S", bound=Spec)
Entry = TypeVar("Entry", bound=Callable[..., Any])


class Registry(Mapping[str, S], Generic[S]):
    """Specs by name, read from the source of a package on first use.

    Args:
        kind: what an entry is called in messages, e.g. "model".
        package: dotted name of the package whose files are read.
        decorator: name of the decorator to look for.
        spec: the dataclass that holds the facts.
    """

    def __init__(self, kind: str, package: str, decorator: str, spec: type[S]) -> None:
        self.kind = kind
        self._package, self._decorator, self._spec = package, decorator, spec
        self._specs: dict[str, S] = {}
        self._aliases: dict[str, str] = {}
        self._full = False

    def register(self, name: str, **facts: Any) -> Callable[[Entry], Entry]:
        """Decorate a function or class to add it under `name` with these facts."""

        def add(entry: Entry) -> Entry:
            self._add(
                self._spec(
                    name=name,
                    module=entry.__module__,
                    attribute=entry.__qualname__,
                    entry=entry,
                    options=_options_of_object(entry),
                    summary=(entry.__doc__ or "").partition("\n")[0],
                    **facts,
                )
            )
            return entry

        return add

    def canonical(self, name: str) -> str:
        """Return the registered name for a name or an alias.

        Raises:
            ZooError: nothing is registered under it; the message names near ones.
        """
        self._fill()
        name = self._aliases.get(name, name)
        if name not in self._specs:
            known = [*self._specs, *self._aliases]
            raise ZooError(f"no {self.kind} named {name!r}{_known(name, known)}")
        return name

    def __getitem__(self, name: str) -> S:
        """Return the spec of a name or an alias."""
        return self._specs[self.canonical(name)]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the canonical names in the order of the files."""
        self._fill()
        return iter(self._specs)

    def __len__(self) -> int:
        """Return the number of entries."""
        self._fill()
        return len(self._specs)

    def __contains__(self, name: object) -> bool:
        """Tell whether a name or an alias is known (`Mapping` would expect a KeyError)."""
        self._fill()
        return name in self._specs or name in self._aliases

    def _fill(self) -> None:
        if self._full:
            return
        for spec in self._read().values():
            self._add(spec)
        self._full = True

    def _read(self) -> dict[str, S]:
        found = importlib.util.find_spec(self._package)
        if found is None or not found.submodule_search_locations:
            raise ImportError(f"{self._package} is not a package")
        specs: dict[str, S] = {}
        for path in sorted(Path(found.submodule_search_locations[0]).glob("[!_]*.py")):
            for name, facts, node in _decorated(path, self._decorator):
                if name in specs:
                    raise ValueError(f"{self.kind} {name!r} is registered twice, again in {path}")
                specs[name] = self._spec(
                    name=name,
                    module=f"{self._package}.{path.stem}",
                    attribute=node.name,
                    options=_options_of_source(node),
                    summary=(ast.get_docstring(node) or "").partition("\n")[0],
                    **facts,
                )
        return specs

    def _add(self, spec: S) -> None:
        taken = self._specs.get(spec.name)
        if taken is not None and (taken.module, taken.attribute) != (spec.module, spec.attribute):
            raise ValueError(
                f"{self.kind} {spec.name!r} of {spec.module} is already registered "
                f"by {taken.module}; choose another name"
            )
        self._specs[spec.name] = spec
        self._aliases |= dict.fromkeys(spec.aliases, spec.name)


Definition = ast.FunctionDef | ast.ClassDef


def _decorated(path: Path, decorator: str) -> Iterator[tuple[str, dict[str, Any], Definition]]:
    """Yield name, literal facts and definition of each `@decorator("name", ...)` in a file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, Definition):
            continue
        for call in node.decorator_list:
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
                continue
            if call.func.id != decorator:
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


def _options_of_source(node: Definition) -> tuple[str, ...] | None:
    """Keyword arguments of a function, or of a class's `__init__` after the channels."""
    function, skip = node, 0
    if isinstance(node, ast.ClassDef):
        inits = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
        if not inits:
            return None
        function, skip = inits[0], 2
    assert isinstance(function, ast.FunctionDef)  # noqa: S101 - narrows the type
    if function.args.kwarg:
        return None
    return tuple(a.arg for a in function.args.args[skip:] + function.args.kwonlyargs)


def _options_of_object(entry: Callable[..., Any]) -> tuple[str, ...] | None:
    """Tell the same of a live function or class."""
    parameters = list(inspect.signature(entry).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters[1 if inspect.isclass(entry) else 0 :])


def _near(name: str, known: Any) -> str:
    """Suggest names that look like `name`, as the tail of a message."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _known(name: str, known: Any) -> str:
    """Suggest near names, or else name them all."""
    return _near(name, known) or f"; there is: {', '.join(known)}"
