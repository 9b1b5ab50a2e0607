"""XLSX with the columns of a CSV: numbers as numbers, all text as text.

Either of the engines that pandas uses writes it. They are called row by row, because pandas keeps
an object for each cell: gigabytes for a hundred thousand records.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from datbench.errors import UserError
from datbench.records import COLUMNS
from datbench.reports import Content, report
from datbench.rows import inert

LONGEST = 32_767  # characters that a cell holds
FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # in XML


@report("xlsx", binary=True)
def xlsx(content: Content) -> bytes:
    """A workbook of one sheet, for Excel and its like."""
    columns = list(content.columns or COLUMNS)
    rows = (record.row() for record in content.records)
    file = io.BytesIO()
    _engine()(file, columns, ([_cell(row[column]) for column in columns] for row in rows))
    return file.getvalue()


def _engine() -> Callable[[io.BytesIO, Sequence[str], Iterable[list[Any]]], None]:
    """Choose a writer.

    Raises:
        UserError: none is installed.
    """
    for name, write in (("xlsxwriter", _by_xlsxwriter), ("openpyxl", _by_openpyxl)):
        if importlib.util.find_spec(name):
            return write
    raise UserError("xlsx needs a package that is not installed: pip install openpyxl")


def _by_xlsxwriter(file: io.BytesIO, columns: Sequence[str], rows: Iterable[list[Any]]) -> None:
    import xlsxwriter

    book = xlsxwriter.Workbook(file, {"constant_memory": True})
    sheet = book.add_worksheet("records")
    sheet.freeze_panes(1, 1)
    for i, row in enumerate(itertools.chain([columns], rows)):
        for j, value in enumerate(row):
            if isinstance(value, str):
                sheet.write_string(i, j, value)
            elif value is not None:
                sheet.write_number(i, j, value)
    book.close()


def _by_openpyxl(file: io.BytesIO, columns: Sequence[str], rows: Iterable[list[Any]]) -> None:
    import openpyxl
    from openpyxl.cell import WriteOnlyCell

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("records")
    sheet.freeze_panes = "B2"

    def typed(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        cell = WriteOnlyCell(sheet, value)
        cell.data_type = "s"  # also of "#N/A", which would be an error
        return cell

    for row in itertools.chain([columns], rows):
        sheet.append(list(map(typed, row)))
    book.save(file)


def _cell(value: Any) -> Any:
    """Make text that a cell can hold and that no spreadsheet runs; numbers stay."""
    if not isinstance(value, str):
        return value
    text = FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", inert(value))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
