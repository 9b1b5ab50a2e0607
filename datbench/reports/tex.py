"""LaTeX: a document that pdflatex compiles, whose table can be pasted into a paper.

Text of others is set as text: what is special to TeX is escaped, and what pdflatex has no letter
for is written as its code point.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Sequence

from datbench.records import Record
from datbench.reports import Content, report
from datbench.reports.cells import is_words, tabulate
from datbench.reports.machines import NO_RATIOS, by_machine, side_by_side
from datbench.reports.methods import methods
from datbench.reports.notes import notes

LONG = 30  # rows from which a table goes on over pages
WIDEST = 40  # letters of a column, beyond which its cells are broken into lines
UNBROKEN = 30  # characters of a word from which it may be broken anywhere
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "^": r"\textasciicircum{}", "_": r"\_", "%": r"\%", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"{\ttfamily\char34}", "`": r"{\ttfamily\char18}",
    "\n": " ", "\t": " ", "\N{NO-BREAK SPACE}": " ",
    "–": r"\textendash{}", "—": r"\textemdash{}", "…": r"\dots{}", "×": r"$\times$", "±": r"$\pm$",
    "µ": r"$\mu$", "·": r"$\cdot$", "°": r"$^\circ$", "→": r"$\to$", "≤": r"$\leq$",
    "≥": r"$\geq$", "≈": r"$\approx$", "∞": r"$\infty$", "€": "EUR",
    "’": "'", "‘": "`{}", "“": "``", "”": "''",
}  # fmt: skip
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa mu nu xi pi rho sigma tau upsilon "
    "phi chi psi omega"
)
SPECIAL |= {
    unicodedata.lookup(f"GREEK SMALL LETTER {name}"): f"$\\{name}$" for name in GREEK.split()
}
# Most cells: short, without two dashes or commas in a row.
HARMLESS = re.compile(r"(?:[A-Za-z0-9 .:;()\[\]/=+*@!?]|-(?!-)|,(?!,)){,30}")
# Letters with marks that every TeX can set.
LETTERS = frozenset(
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿĆćČčĎďĚěĞğİıŁłŃńŇňŐőŒœŘřŚśŞşŠšŤťŮůŰű"
    "ŹźŻżŽž"
)
# Type sizes with the width of a letter in points, on paper of so many millimetres.
FITS = (
    (210, "small", 4.9), (210, "footnotesize", 4.5), (297, "small", 4.9),
    (297, "footnotesize", 4.5), (297, "scriptsize", 4.1), (297, "tiny", 3.5),
)  # fmt: skip
MARGIN = 15  # millimetres
POINTS = 72.27 / 25.4  # of TeX in a millimetre
GAP = 3  # points on each side of a column


@report("tex")
def tex(content: Content) -> str:
    """A table in the manner of booktabs, in a document that compiles."""
    machines = by_machine(content.records)
    tables = [_table(label, group, content.columns) for label, group in machines]
    under = [list(notes(group)) for _, group in machines]
    if len(machines) > 1:
        tables.append(Table(f"Median latency by machine. {NO_RATIOS}", *side_by_side(machines)))
        under.append([])
    width, height, size = _paper(tables)
    lines = [
        "",  # which lines are a table, see below
        r"\documentclass{article}",
        rf"\usepackage[paperwidth={width}mm,paperheight={height}mm,margin={MARGIN}mm]{{geometry}}",
        r"\usepackage[utf8]{inputenc}",
        r"\usepackage{array,booktabs,longtable}",
        r"\begin{document}",
    ]
    spans = []
    for table, told in zip(tables, under, strict=True):
        first = len(lines) + 1
        lines += table.lines(size)
        spans.append(f"{first} to {len(lines)}")
        lines += _list(told)
    packages = "array, booktabs and, for a table over pages, longtable"
    lines[0] = f"% To paste: lines {', '.join(spans)}. Packages: {packages}."
    lines += [rf"\par {escaped(paragraph)}" for paragraph in methods(content.records)]
    return "\n".join([*lines, r"\end{document}", ""])


def _table(label: str, records: Sequence[Record], columns: Sequence[str] | None) -> Table:
    titles, rows = tabulate(records, columns=columns)
    if columns is not None:
        return Table(f"Measured on {label}.", titles, rows)
    if any(record.flags for record in records):
        titles.append("flags")
        for record, row in zip(records, rows, strict=True):
            row.append(", ".join(record.flags))
    meaning = "Latency is the median of a batch, with its 95 % interval."
    return Table(f"Measured on {label}. {meaning}", titles, rows)


class Table:
    """A table of text that is not escaped yet.

    Args:
        caption: what stands above it.
        titles, rows: its cells; a title may have two lines.
    """

    def __init__(self, caption: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.caption = caption
        head = [title.split("\n") for title in titles]
        height = max(map(len, head))
        self.words = [is_words(title) for title in titles]
        self.head = list(zip(*([""] * (height - len(t)) + t for t in head), strict=True))
        self.rows = rows
        columns = zip(*self.head, *rows, strict=True)
        self.longest = [max(map(_length, column)) for column in columns]

    def points(self, letter: float) -> float:
        """Width in points, given that of a letter."""
        return sum(2 * GAP + letter * min(WIDEST, longest) for longest in self.longest)

    def lines(self, size: str) -> list[str]:
        """Lines of LaTeX: a float, or a table that goes on over pages."""
        head = [_row(cells) for cells in self.head]
        body = [_row(row) for row in self.rows]
        caption = rf"\caption{{{escaped(self.caption)}}}"
        type_ = rf"\{size}\setlength{{\tabcolsep}}{{{GAP}pt}}"
        if len(body) > LONG:
            return [
                f"{{{type_}", rf"\begin{{longtable}}{{@{{}}{self._spec()}@{{}}}}",
                rf"{caption} \\", r"\toprule", *head, r"\midrule", r"\endhead", r"\bottomrule",
                r"\endfoot", *body, r"\end{longtable}", "}",
            ]  # fmt: skip
        return [
            r"\begin{table}[ht]", rf"\centering{type_}", rf"{caption}\smallskip",
            rf"\begin{{tabular}}{{@{{}}{self._spec()}@{{}}}}", r"\toprule", *head, r"\midrule",
            *body, r"\bottomrule", r"\end{tabular}", r"\end{table}",
        ]  # fmt: skip

    def _spec(self) -> str:
        wide = rf">{{\raggedright\arraybackslash}}p{{{WIDEST / 2}em}}"
        return "".join(
            wide if longest > WIDEST else "l" if left else "r"
            for longest, left in zip(self.longest, self.words, strict=True)
        )


def _paper(tables: Sequence[Table]) -> tuple[int, int, str]:
    """Choose the sides of the paper in millimetres and the size of type, so that tables fit."""
    for width, size, letter in FITS:
        points = max((table.points(letter) for table in tables), default=0)
        if points <= (width - 2 * MARGIN) * POINTS:
            return width, 507 - width, size  # A4, upright or not
    return math.ceil(points / POINTS) + 2 * MARGIN, 210, size


def _row(cells: Sequence[str]) -> str:
    return "{}" + " & ".join(map(_cell, cells)) + r" \\"  # or a "[" would be an argument


def _cell(cell: str) -> str:
    """Write a cell; the sign of a ratio is that of a product."""
    return re.sub(r"^([\d.]+)x", r"\1$\\times$", escaped(cell))


def _list(told: Sequence[str]) -> list[str]:
    if not told:
        return []
    items = [rf"\item {{}}{escaped(line)}" for line in told]
    return [
        r"\begin{itemize}\footnotesize\raggedright\setlength{\itemsep}{0pt}",
        *items,
        r"\end{itemize}",
    ]


def escaped(text: str) -> str:
    """Write text so that LaTeX sets it as it is, long words with places to break."""
    if HARMLESS.fullmatch(text):
        return text
    return "".join(
        r"\allowbreak{}".join(map(_letter, word)) if len(word) > UNBROKEN else _word(word)
        for word in re.split(r"(\s)", text)
    )


def _word(word: str) -> str:
    """Escape a word, without the dashes and quotes that TeX makes of two characters."""
    return re.sub(r"([-',])(?=\1)", r"\1{}", "".join(map(_letter, word)))


@functools.cache
def _letter(character: str) -> str:
    if character in SPECIAL:
        return SPECIAL[character]
    if (character.isascii() and character.isprintable()) or character in LETTERS:
        return character
    plain = unicodedata.normalize("NFKC", character)
    if plain != character and plain.isascii() and plain.isprintable():
        return _word(plain)
    return f"U+{ord(character):04X}"


def _length(text: str) -> int:
    """Letters of a cell as they are set."""
    if HARMLESS.fullmatch(text):
        return len(text)
    set_ = re.sub(r"\\(allowbreak|ttfamily)(\{\})?", "", escaped(text))
    return len(re.sub(r"[{}$]", "", re.sub(r"\\[a-z]+(\{\}|\d*)|\\.", "x", set_)))
