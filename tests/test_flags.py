"""Every flag that the code can attach is explained."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from datbench.flags import FLAGS

ROOT = Path(__file__).parents[1]
WARNING = re.compile(r"([a-z]+(?:_[a-z]+)*): ")
# Texts that begin like a warning and are none: a column's explanation, the reason behind a flag,
# and what the profiler calls a step.
NO_FLAGS = {"ms", "fvcore", "datbench"}
SHOWING = ("reports", "cli.py")  # they show warnings and attach none


def sources() -> list[Path]:
    files = [*(ROOT / "datbench").rglob("*.py"), *(ROOT / "zoo").rglob("*.py")]
    return [file for file in files if not set(SHOWING) & set(file.relative_to(ROOT).parts)]


def texts(tree: ast.AST) -> Iterator[str]:
    """Beginnings of the texts of a tree, those of raised errors left out."""
    if isinstance(tree, ast.Raise):
        return
    if isinstance(tree, ast.JoinedStr):
        first = tree.values[0] if tree.values else None
        if isinstance(first, ast.Constant):
            yield str(first.value)
        return
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        yield tree.value
    for child in ast.iter_child_nodes(tree):
        yield from texts(child)


def looped(tree: ast.AST) -> Iterator[str]:
    """Constants that a loop over literal tuples calls `flag`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.comprehension) and isinstance(node.iter, ast.Tuple):
            names = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
            if isinstance(names[0], ast.Name) and names[0].id == "flag":
                for item in node.iter.elts:
                    first = item.elts[0] if isinstance(item, ast.Tuple) else item
                    yield str(ast.literal_eval(first))


def flags_of(source: str) -> set[str]:
    tree = ast.parse(source)
    begun = {match[1] for text in texts(tree) if (match := WARNING.match(text))}
    return (begun - NO_FLAGS) | set(looped(tree))


def test_every_flag_of_the_code_is_explained_and_no_other():
    found = set().union(*(flags_of(file.read_text(encoding="utf-8")) for file in sources()))
    assert found == set(FLAGS)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    yield 'fresh: it was'", {"fresh"}),
        ("doubts.append(f'two_words: {x}')", {"two_words"}),
        ("[f'{flag}: {t}' for flag, t in (('hot', a), ('cold', b)) if t]", {"hot", "cold"}),
        ("raise UserError('model: there is none')", set()),
        ("'''Flags: none is meant.'''", set()),
        ("fault = 'Out of memory: so much'", set()),
    ],
)
def test_the_search_sees_how_flags_are_written(source, expected):
    assert flags_of(source) == expected


@pytest.mark.parametrize("flag", FLAGS)
def test_an_explanation_is_one_sentence_with_what_to_do(flag):
    text = FLAGS[flag]
    assert re.fullmatch(r"[A-Z][^\n]*: [^\n]*\.", text)
    assert ". " not in text
    assert 60 < len(text) < 180
