"""Which records a report shows, in which order and with which columns."""

from __future__ import annotations

import ast
import dataclasses
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datbench.errors import UserError
from datbench.records import COLUMNS, Record
from datbench.reports import Content
from datbench.reports.cells import TEXT
from zoo.registry import near

if TYPE_CHECKING:
    import pandas as pd

EXAMPLE = 'batch_size == 1 and family == "dat"'
NODES = (
    ast.Expression, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop, ast.Compare, ast.cmpop,
    ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr, ast.Constant, ast.Name,
    ast.Load, ast.List, ast.Tuple, ast.Call, ast.keyword, ast.Attribute,
)  # fmt: skip
EMPTY = {"isna": ast.Eq, "isnull": ast.Eq, "notna": ast.NotEq, "notnull": ast.NotEq}
METHODS = frozenset({*EMPTY, "isin", "between", "abs", "str"})
OF_STR = frozenset("startswith endswith contains match fullmatch lower upper strip len".split())


def select(
    content: Content,
    *,
    columns: str | None = None,
    sort: str | None = None,
    where: str | None = None,
) -> Content:
    """Filter, sort, and choose columns.

    Args:
        columns: names with commas between them.
        sort: the same; a name after "-" sorts from high to low. Empty cells come last.
        where: an expression of pandas over the columns, e.g. `batch_size == 1`. A number that was
            not measured fulfils no comparison but `!=`; a text that is not there is "".
    Raises:
        UserError: a column is unknown, the expression is none, or no record is left.
    """
    chosen = None if columns is None else list(dict.fromkeys(_names(columns, "--columns")))
    keys = [] if sort is None else [part.strip() for part in sort.split(",")]
    for key in keys:
        _check(key.removeprefix("-"), "--sort")
    records = list(content.records)
    if where is not None:
        records = _filtered(records, where)
    if keys:
        records = _sorted(records, keys)
    left = {(record.run_id, record.model) for record in records}
    samples = {key: slots for key, slots in content.samples.items() if key in left}
    return dataclasses.replace(
        content, records=records, samples=samples, columns=chosen or content.columns
    )


def _names(text: str, option: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    for name in names:
        _check(name, option)
    return names


def _check(name: str, option: str) -> None:
    if name not in COLUMNS:
        known = ", ".join(COLUMNS)
        raise UserError(f"{option}: no column named {name!r}{near(name, COLUMNS)}; known: {known}")


def _sorted(records: list[Record], keys: Sequence[str]) -> list[Record]:
    rows = [(record.row(), record) for record in records]
    for key in reversed(keys):
        column = key.removeprefix("-")
        there = [item for item in rows if item[0][column] is not None]
        empty = [item for item in rows if item[0][column] is None]
        there.sort(key=lambda item: _order(item[0][column]), reverse=key.startswith("-"))
        rows = there + empty
    return [record for _, record in rows]


def _order(value: Any) -> tuple[bool, Any]:
    """Sort numbers as numbers, before text such as the size 224x320."""
    return isinstance(value, str), value


def _filtered(records: list[Record], where: str) -> list[Record]:
    """Keep the records for which an expression is true."""
    tree = _parsed(where)
    frame = _frame(records, {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
    expression = ast.unparse(ast.fix_missing_locations(_Emptiness().visit(tree)))
    try:
        with warnings.catch_warnings(action="ignore"):  # of groups in a pattern
            found = frame.eval(expression, engine="python")
    except (
        ArithmeticError, AttributeError, LookupError, NameError, NotImplementedError,
        RecursionError, SyntaxError, TypeError, ValueError, re.error,
    ) as error:  # fmt: skip
        told = " ".join(str(error).split())
        raise UserError(f"--filter {where!r} does not work: {told}") from error
    kind, shape = getattr(found, "dtype", None), getattr(found, "shape", None)
    if str(kind) != "bool" or shape != (len(records),):
        raise UserError(f"--filter {where!r} says no yes or no of each row; write e.g. {EXAMPLE}")
    kept = [record for record, keep in zip(records, found, strict=True) if keep]
    if not kept:
        raise UserError(f"--filter {where!r} leaves none of the {len(records)} rows")
    return kept


def _parsed(where: str) -> ast.Expression:
    """Read an expression; it may compare columns and ask about their text, and nothing else."""
    try:
        tree = ast.parse(where.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        told = error.msg if isinstance(error, SyntaxError) else error
        hint = "; there are no @variables" if "@" in where else ""
        raise UserError(
            f"--filter {where!r} cannot be read: {told}{hint}; write e.g. {EXAMPLE}"
        ) from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            _check(node.id, "--filter")
        elif isinstance(node, ast.Attribute):
            of_str = isinstance(node.value, ast.Attribute) and node.value.attr == "str"
            known = OF_STR if of_str else METHODS
            if node.attr not in known:
                raise UserError(
                    f"--filter: .{node.attr} is not for filters{near(node.attr, known)}; "
                    f"there is: {', '.join(sorted(known))}"
                )
        elif not isinstance(node, NODES):
            part = type(node).__name__
            raise UserError(f"--filter {where!r}: {part} is not for filters; write e.g. {EXAMPLE}")
    return tree


class _Emptiness(ast.NodeTransformer):
    """Ask of text whether it is "" where it is asked whether it is missing."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        asked = node.func
        if isinstance(asked, ast.Attribute) and asked.attr in EMPTY:
            column = asked.value
            if isinstance(column, ast.Name) and column.id in TEXT:
                return ast.Compare(column, [EMPTY[asked.attr]()], [ast.Constant("")])
        return node


def _frame(records: Sequence[Record], columns: set[str]) -> pd.DataFrame:
    """Make a table of what an expression names: text as str, numbers as float, sizes as either."""
    import pandas as pd

    rows = [record.row() for record in records]
    data = {}
    for column in columns:
        values = [row[column] for row in rows]
        if column in TEXT:
            data[column] = pd.Series(["" if v is None else v for v in values], dtype=object)
        else:
            words = any(isinstance(value, str) for value in values)
            data[column] = pd.Series(values, dtype=object if words else float)
    return pd.DataFrame(data)
