"""A registry that fills itself by reading a package, without importing it.

Every file of `package` may hold functions or classes under a decorator such as
`@model("dat_tiny", params=28_319_138)`. The names and facts are read from the source text, so
listing them costs milliseconds and imports neither torch nor the file. The file is imported when
one of its entries is loaded. Facts must therefore be literals. Code outside the package (a
user's own file) registers through the same decorator when it is imported.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from zoo.source import Definition, decorated, definitions, find_source, options_of_source

NAME = re.compile(r"[\w.-]+", re.ASCII)  # what a name that users type is made of


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
        if self.entry is None and self.module not in sys.modules:
            torch = sys.modules.get("torch")
            # Tensors that the module makes are real, also where the model is built on "meta".
            with torch.device("cpu") if torch is not None else contextlib.nullcontext():
                importlib.import_module(self.module)
        return self.entry or getattr(sys.modules[self.module], self.attribute)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse keyword arguments that the entry does not take.

        Raises:
            ZooError: an option is unknown.
        """
        for given in options:
            if self.options is not None and given not in self.options:
                takes = ", ".join(self.options) or "no options"
                hint = near(given, self.options)
                raise ZooError(f"{self.name} has no option {given!r}{hint}; it takes: {takes}")


S = TypeVar("S", bound=Spec)
Entry = TypeVar("Entry", bound=Callable[..., Any])


class Registry(Mapping[str, S], Generic[S]):
    """Specs by name, read from the source of a package on first use.

    Args:
        kind: what an entry is called in messages, e.g. "model".
        package: dotted name of the package whose files are read.
        decorator: name of the decorator to look for.
        spec: the dataclass that holds the facts.
        group: entry points of installed packages that add to it, see `_plug_in`.
        leading: arguments of an entry that are no options: a block's channels.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        decorator: str,
        spec: type[S],
        *,
        group: str | None = None,
        leading: int = 0,
    ) -> None:
        self.kind, self.leading = kind, leading
        self._package, self._decorator, self._spec = package, decorator, spec
        self._group = group
        self._specs: dict[str, S] = {}
        self._aliases: dict[str, str] = {}
        self._full = False

    def register(self, name: str, **facts: Any) -> Callable[[Entry], Entry]:
        """Decorate a function or class to add it under `name` with these facts."""

        def add(entry: Entry) -> Entry:
            self._fill()  # so that a name that is taken is refused here
            self._add(
                self._spec(
                    name=name,
                    module=entry.__module__,
                    attribute=entry.__qualname__,
                    entry=entry,
                    options=_options_of_object(entry, self.leading),
                    summary=(entry.__doc__ or "").partition("\n")[0],
                    **facts,
                )
            )
            return entry

        return add

    def add_file(self, path: Path, module: str, **known: Any) -> list[str]:
        """Add what stands under the decorator in a file, which is imported as `module`.

        Args:
            known: facts of each of them, unless the decorator says otherwise.
        Returns:
            The names.
        Raises:
            ValueError, SyntaxError, TypeError: it cannot be read, or a name is taken.
        """
        self._fill()
        specs = [
            self._spec_of(name, module, node, {**known, **facts})
            for name, facts, node in decorated(path, self._decorator)
        ]
        for spec in specs:
            self._add(spec)
        return [spec.name for spec in specs]

    def forget(self, module: str) -> None:
        """Drop what a module added."""
        self._specs = {name: spec for name, spec in self._specs.items() if spec.module != module}
        self._aliases = {a: name for a, name in self._aliases.items() if name in self._specs}

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
        read = self._read()
        self._full = True
        for spec in read.values():
            self._add(spec)
        self._plug_in()

    def _read(self) -> dict[str, S]:
        found = importlib.util.find_spec(self._package)
        if found is None or not found.submodule_search_locations:
            raise ImportError(f"{self._package} is not a package")
        specs: dict[str, S] = {}
        for path in sorted(Path(found.submodule_search_locations[0]).glob("[!_]*.py")):
            for name, facts, node in decorated(path, self._decorator):
                if name in specs:
                    raise ValueError(f"{self.kind} {name!r} is registered twice, again in {path}")
                specs[name] = self._spec_of(name, f"{self._package}.{path.stem}", node, facts)
        return specs

    def _spec_of(self, name: str, module: str, node: Definition, facts: dict[str, Any]) -> S:
        return self._spec(
            name=name,
            module=module,
            attribute=node.name,
            options=options_of_source(node, self.leading),
            summary=(ast.get_docstring(node) or "").partition("\n")[0],
            **facts,
        )

    def _plug_in(self) -> None:
        """Add what installed packages have.

        An entry point is either `anything = "package.module"`, a file with entries under the
        decorator, or `name = "package.module:attribute"`, one entry. What cannot be read, or has a
        name that is taken, is left out with a warning.
        """
        points = importlib.metadata.entry_points(group=self._group) if self._group else ()
        for point in points:
            try:
                for spec in list(self._of_point(point)):
                    self._add(spec)
            except (ValueError, TypeError, OSError, SyntaxError) as error:
                owner = point.dist.name if point.dist else "an installed package"
                text = f"{self._group} entry point {point.name!r} of {owner} left out: {error}"
                warnings.warn(text, stacklevel=2)

    def _of_point(self, point: importlib.metadata.EntryPoint) -> Iterator[S]:
        path = find_source(point.module)
        if path is None:
            raise ValueError(f"there is no module {point.module}")
        owner = {"family": "external", "source": point.module}
        if point.dist is not None:
            owner = {"family": point.dist.name, "source": f"{point.dist.name} {point.dist.version}"}
        fields = {field.name for field in dataclasses.fields(self._spec)}
        known: dict[str, Any] = {name: owner[name] for name in owner if name in fields}
        marked = [
            m for m in decorated(path, self._decorator) if (point.attr or m[2].name) == m[2].name
        ]
        for name, facts, node in marked:
            yield self._spec_of(name, point.module, node, {**known, **facts})
        if marked:
            return
        defined = definitions(ast.parse(path.read_bytes()).body)
        if point.attr not in defined:
            raise ValueError(f"{path} has no {point.attr or '@' + self._decorator}")
        found = defined[point.attr]
        if isinstance(found, Definition):
            yield self._spec_of(point.name, point.module, found, known)
        else:  # made elsewhere: what it takes shows when it is imported
            yield self._spec(
                name=point.name,
                module=point.module,
                attribute=point.attr,
                options=None,
                **known,
            )

    def _add(self, spec: S) -> None:
        for name in (spec.name, *spec.aliases):
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ValueError(
                    f"{self.kind} {name!r} of {spec.module}: names have letters, digits, _ - and ."
                )
        taken = self._specs.get(spec.name)
        if taken is not None and (taken.module, taken.attribute) != (spec.module, spec.attribute):
            raise ValueError(
                f"{self.kind} {spec.name!r} of {spec.module} is already registered "
                f"by {taken.module}; choose another name"
            )
        if taken is not None and spec.entry is not None:
            spec = dataclasses.replace(taken, entry=spec.entry)  # read before, now imported
        for name in (spec.name, *spec.aliases):
            owner = self._aliases.get(name, name if name in self._specs else spec.name)
            if owner != spec.name:
                raise ValueError(
                    f"{self.kind} {spec.name!r}: the name {name!r} is taken by {owner!r}"
                )
        self._specs[spec.name] = spec
        self._aliases |= dict.fromkeys(spec.aliases, spec.name)


def _options_of_object(entry: Callable[..., Any], leading: int) -> tuple[str, ...] | None:
    """Tell of a live function or class what `options_of_source` tells of its text."""
    parameters = list(inspect.signature(entry).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters[leading:])


def near(name: str, known: Any) -> str:
    """Suggest names that look like `name`, as the tail of a message."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _known(name: str, known: Any) -> str:
    """Suggest near names, or else name them all."""
    return near(name, known) or f"; there is: {', '.join(known)}"
