"""Reports without the names of people and of their computers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import getpass
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datbench.records import Environment, Measurement, Record
from datbench.reports import Content

NAME = r"[^\s/\\:;,\"'<>|()\[\]{}]+"
HOMES = re.compile(
    r"(?:(?<=file://)|(?<![\w./~-]))"  # where an absolute path starts
    rf"(?:(?:/[\w.@-]+)*/(?:home\w*|[Uu]sers)/(?P<posix>{NAME})|/root(?![\w.-])"
    rf"|[A-Za-z]:[\\/]+Users[\\/]+(?P<windows>[^\\/:*?\"<>|\r\n]+(?=[\\/])|{NAME}))"
)
PATH = re.compile(r"[^\s:;,=\"'<>|()\[\]{}]*[/\\][^\s:;,=\"'<>|()\[\]{}]*")
HIDDEN = re.compile(r"host-[0-9a-f]{8}")
OURS = frozenset("family device dtype mode optimizer runtime tier verdict name schema key".split())
LABELS = frozenset({"model", "baseline"})  # ours, unless they are paths
NUMBERS = frozenset({int, float, bool, type(None)})


def without_host(content: Content) -> Content:
    """Return the content with hosts as hashes, home folders as "~" and the user as "user".

    The same host has the same hash everywhere, so that machines stay apart. Names are looked for
    in every text, a user's only as a whole part of a path.
    """
    hosts = {r.environment.host for r in content.records if r.environment} - {""}
    texts: dict[str, str] = {}
    _hidden_content(content, lambda text: texts.setdefault(text, text))
    return _hidden_content(content, functools.cache(_hiding(hosts, _users(texts))))


def without_home(text: str) -> str:
    """Return a text with home folders as "~" and the user in paths as "user"."""
    return _hiding(set(), _users([text]))(text)


def _hidden_content(content: Content, hide: Callable[[str], str]) -> Content:
    environments: dict[int, Environment | None] = {}  # by identity: thousands share one

    def of_record(record: Record) -> Record:
        where = record.environment
        if id(where) not in environments:
            environments[id(where)] = _hidden(where, hide)
        found = {
            name: _hidden(getattr(record, name), hide, name)
            for name in _fields(Record)
            if name != "environment"
        }
        return Record(**found, environment=environments[id(where)])

    samples = {
        (hide(run_id), _hidden(model, hide, "model")): _hidden(slots, hide)
        for (run_id, model), slots in content.samples.items()
    }
    records = list(map(of_record, content.records))
    return dataclasses.replace(content, records=records, samples=samples)


def _hidden(value: Any, hide: Callable[[str], str], key: str = "") -> Any:
    """Replace the strings in records, lists and dictionaries, but for words of datbench's own."""
    if type(value) in NUMBERS or (isinstance(value, Measurement) and not value.warnings):
        return value
    if isinstance(value, str):
        ours = key in OURS or (key in LABELS and not re.search(r"[/\\]", value))
        return value if ours else hide(value)
    if isinstance(value, Mapping):
        found = {k: _hidden(v, hide, k) for k, v in value.items()}
        return value if found == value else found  # a copy of each slot takes memory
    if isinstance(value, list | tuple):
        numbers = NUMBERS.issuperset(map(type, value))
        return value if numbers else type(value)(_hidden(item, hide, key) for item in value)
    cls: Any = type(value)
    return cls(**{name: _hidden(getattr(value, name), hide, name) for name in _fields(cls)})


@functools.cache
def _fields(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


def _users(texts: Iterable[str]) -> set[str]:
    """Names of the current user, and of those whose home folders are named."""
    names = {name for text in texts for match in HOMES.finditer(text) for name in match.groups()}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a user without a name
        names.add(getpass.getuser())
    return {name for name in names if name}


def _hiding(hosts: set[str], users: set[str]) -> Callable[[str], str]:
    """Make what replaces the names in a text."""
    home = str(Path.home()).rstrip("/\\")
    own_home = re.compile(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])") if home else None
    known = {name.lower(): _hash(host) for host in hosts for name in _names(host)}
    longest_first = sorted(map(re.escape, known), key=len, reverse=True)
    # A domain behind the name goes with it.
    host = re.compile(rf"(?<![\w.-])({'|'.join(longest_first)})(?:\.[a-z][\w-]*)*(?![\w-])", re.I)

    def hide(text: str) -> str:
        text = own_home.sub("~", text) if own_home else text
        text = PATH.sub(lambda path: _without_users(path[0], users), HOMES.sub("~", text))
        return host.sub(lambda found: known[found[1].lower()], text) if known else text

    return hide


def _without_users(path: str, users: set[str]) -> str:
    """Replace whole parts of a path; the last one only where the path has a root."""
    parts = re.split(r"([/\\])", path)
    last = len(parts) if path[0] in "/\\~." else len(parts) - 1
    return "".join("user" if p in users and i < last else p for i, p in enumerate(parts))


def _names(host: str) -> Iterator[str]:
    """Yield a host's name, and the part before its domain where no ordinary word looks so."""
    if not HIDDEN.fullmatch(host):
        yield host
        short = host.partition(".")[0]
        if re.search(r"[\d-]", short) and re.search(r"[a-z]", short, re.IGNORECASE):
            yield short


def _hash(host: str) -> str:
    return f"host-{hashlib.sha256(host.encode()).hexdigest()[:8]}"
