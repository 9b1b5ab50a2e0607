"""LaTeX: what pdflatex makes of it, with names that try to get out of the table."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datbench.records import COLUMNS, Comparison
from datbench.reports import Content, render
from datbench.reports.tex import LETTERS, LONG, SPECIAL, escaped

HOSTILE = (
    r"\input{/etc/passwd}", r"\write18{touch written}", "%", "^^5cinput{x}", "{", "}", "$", "&",
    "#1", "_", "~", "<>", '"', "'' `` -- ---", "\\\\", "\\end{document}", "日本語",
    "\x00\x07\x1b[31m",
    "＼ｉｎｐｕｔ", "\u202e", "a\n\nb\tc", "".join(sorted(LETTERS)), "".join(SPECIAL), "x" * 300,
    "\ud800", "[x]/net.py:f", "*x",
)  # fmt: skip


def compiled(text: str, folder) -> str:
    """Compile a document and return what was said; with what does not fit the page."""
    if shutil.which("pdflatex") is None:
        pytest.skip("there is no pdflatex to compile with")
    (folder / "a.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "a"]
    for _ in range(2):  # longtable learns its widths in the first
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    said = done.stdout.decode("latin-1")
    assert done.returncode == 0, said[-3000:]
    assert (folder / "a.pdf").stat().st_size > 1000
    assert not (folder / "written").exists()
    return said


@pytest.mark.parametrize("columns", [None, COLUMNS], ids=["default", "all columns"])
def test_pdflatex_sets_hostile_names_and_everything_fits_the_page(tmp_path, make_record, columns):
    slower = Comparison("dat_tiny", 1.31, 1.29, 1.33, "SLOWER")
    records = [make_record(name, error=name, comparison=slower) for name in HOSTILE]
    said = compiled(render(Content(records, columns=columns), "tex"), tmp_path)
    assert "Overfull \\hbox" not in said
    assert "Missing character" not in said
    assert "/etc/passwd" not in re.sub(r"\s", "", said)


def test_many_rows_go_on_over_pages(tmp_path, make_record):
    text = render([make_record(f"model_{i}") for i in range(LONG * 4)], "tex")
    assert "longtable}{" in text
    assert re.search(r"\(([2-9]) pages", compiled(text, tmp_path))


def test_the_table_that_the_first_line_names_can_be_pasted(tmp_path, three_records):
    lines = render(three_records, "tex").splitlines()
    first, last = map(int, re.search(r"lines (\d+) to (\d+)", lines[0]).groups())
    table = "\n".join(lines[first - 1 : last])
    assert table.startswith(r"\begin{table}")
    assert table.endswith(r"\end{table}")
    for part in (r"dat\_tiny", r"1.31$\times$ slower [1.29, 1.33]", "failed", "noisy"):
        assert part in table, part
    paper = "\\documentclass[twocolumn]{article}\n\\usepackage{array,booktabs,longtable}\n"
    compiled(f"{paper}\\begin{{document}}\n{table}\n\\end{{document}}\n", tmp_path)


def test_a_document_tells_how_it_was_measured(three_records):
    text = render(three_records, "tex")
    assert text.index(r"\end{itemize}") < text.index(r"\par ")


@given(st.text())
def test_nothing_special_to_tex_is_left_in_a_text(text):
    known = {*filter(str.isascii, SPECIAL.values()), r"\allowbreak{}"}
    known -= {" ", "EUR", "'", "''"}
    left = escaped(text)
    for command in sorted(known, key=len, reverse=True):
        left = left.replace(command, "")
    left = left.replace("{}", "")  # between two dashes or quotes
    assert not set(left) & set('\\{}$&#^_%~<>|"`')
    assert all(c in LETTERS or (c.isascii() and c.isprintable()) for c in left)


@pytest.mark.parametrize("text", ["--", "---", "''", ",,"])
def test_two_characters_stay_two(text):
    assert escaped(text).count("{}") == len(text) - 1
