"""Published multiply-adds against ours: those of the zoo, or those in a file."""

from __future__ import annotations

import csv
import dataclasses
import decimal
import fnmatch
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datbench.errors import UserError
from datbench.plan import Case, make_plan
from datbench.pool import Pool, WorkerFault
from datbench.schedule import DEFAULT
from zoo import ZooError, external
from zoo.names import parse_name
from zoo.spec import MODELS, ModelSpec

if TYPE_CHECKING:
    from rich.console import RenderableType

TOLERANCE = 0.01  # of the published figure
COLUMNS = ("model", "img_size", "macs", "published_macs", "difference", "note")
HEADER = ("model", "img_size", "gmacs")  # of a file


@dataclasses.dataclass(frozen=True)
class Claim:
    """A published figure.

    Args:
        model: as the zoo or timm names it.
        img_size: side of the input in pixels.
        macs: multiply-adds for one image; None if nothing is published.
        rounding: how far off the figure may be because it was rounded.
        fused: whether batch norms were folded into convolutions first.
    """

    model: str
    img_size: int
    macs: float | None
    rounding: float = 0.0
    fused: bool = False


@dataclasses.dataclass(frozen=True)
class Check:
    """A published figure and ours."""

    claim: Claim
    macs: int | None = None
    doubts: tuple[str, ...] = ()
    error: str = ""

    @property
    def difference(self) -> float | None:
        """Of ours, as a fraction of the published figure."""
        if self.macs is None or not self.claim.macs:
            return None
        return self.macs / self.claim.macs - 1

    @property
    def agrees(self) -> bool:
        """Whether ours was counted and is within 1 % or the rounding of what is published."""
        if self.macs is None or self.error:
            return False
        return self.difference is None or self._close or self._rounded

    @property
    def note(self) -> str:
        """What a reader must know of the row."""
        if self.error:
            return self.error
        if self.macs is None:
            return "; ".join(self.doubts)
        said = [*self.doubts]
        if self.claim.macs is None:
            said.insert(0, "no published figure")
        elif not self.agrees:
            said.insert(0, f"off by more than {TOLERANCE:.0%}")
        elif not self._close:
            said.insert(0, "as published, rounded")
        if self.claim.fused:
            said.append("batch norms folded into the convolutions, as published")
        return "; ".join(said)

    def row(self) -> dict[str, Any]:
        """Return the values of `COLUMNS`."""
        size, published = self.claim.img_size, self.claim.macs
        values = (self.claim.model, size, self.macs, published, self.difference, self.note)
        return dict(zip(COLUMNS, values, strict=True))

    @property
    def _close(self) -> bool:
        return self.difference is not None and abs(self.difference) <= TOLERANCE

    @property
    def _rounded(self) -> bool:
        off = (self.macs or 0) - (self.claim.macs or 0)
        return abs(off) <= self.claim.rounding


def claims_of_the_zoo(pattern: str = "*") -> list[Claim]:
    """Published figures of the models that match a shell pattern.

    Raises:
        UserError: there is none.
    """
    specs = [MODELS[name] for name in fnmatch.filter(MODELS, pattern)]
    if not specs:
        raise UserError(f"no model of the zoo matches {pattern!r}; see `datbench list`")
    return [
        Claim(
            spec.name,
            spec.img_size,
            spec.published_macs,
            _rounding(str((spec.published_macs or 0) / 1e9)),
            spec.published_fused,
        )
        for spec in specs
    ]


def claims_of_file(path: Path) -> list[Claim]:
    """Figures of a CSV file with the columns model, img_size and gmacs.

    A name that the zoo does not know is timm's. The finest figure tells how all are rounded.

    Raises:
        UserError: it cannot be read; says which line or column is wrong.
    """
    claims, texts = [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [column for column in HEADER if column not in (reader.fieldnames or ())]:
                lacks = f"{path} has no column {', '.join(missing)}"
                raise UserError(f"{lacks}; expected {', '.join(HEADER)}")
            for line in reader:
                claims.append(_claim(path, reader.line_num, line))
                texts.append(line["gmacs"])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as CSV: {reason}") from error
    if not claims:
        raise UserError(f"{path} holds no rows below its header")
    rounding = min(map(_rounding, texts))
    return [dataclasses.replace(claim, rounding=rounding) for claim in claims]


def _claim(path: Path, number: int, line: dict[str, str | None]) -> Claim:
    model, size_, gmacs_ = ((line[column] or "").strip() for column in HEADER)
    try:
        size, macs = int(size_), float(gmacs_) * 1e9
    except ValueError:
        size, macs = 0, 0.0
    if not model or size < 1 or not 0 < macs < float("inf"):
        given = " ".join(f"{model!r}, {size_!r}, {gmacs_!r}".split())
        raise UserError(
            f"{path}, line {number}: {given}; expected a name, a side in pixels and GMACs"
        )
    return Claim(model, size, macs)


def sample(claims: Sequence[Claim], number: int, seed: int) -> list[Claim]:
    """Draw claims at random, of as many families as there are before any comes twice."""
    chance = random.Random(seed)
    families: dict[str, list[Claim]] = defaultdict(list)
    for claim in sorted(claims, key=lambda claim: (claim.model, claim.img_size)):
        families[_family(claim.model)].append(claim)
    groups = list(families.values())
    chance.shuffle(groups)
    for group in groups:
        chance.shuffle(group)
    drawn = [group[i] for i in range(max(map(len, groups))) for group in groups if i < len(group)]
    return drawn[:number]


def verify(
    claims: Sequence[Claim], progress: Callable[[str, float], None] = lambda _, __: None
) -> Iterator[Check]:
    """Count each model, in a process of its own; what fails is a check with `error`."""
    cases = [_case(claim) for claim in claims]
    with Pool(DEFAULT.timeout_s, [case for case in cases if isinstance(case, Case)]) as pool:
        for number, (claim, case) in enumerate(zip(claims, cases, strict=True)):
            progress(claim.model, number / len(claims))
            yield _check(pool, claim, case) if isinstance(case, Case) else Check(claim, error=case)


def _case(claim: Claim) -> Case | str:
    """What to count, or why there is nothing to count."""
    name = claim.model if _ours(claim.model) else f"timm:{claim.model}"
    try:
        plan = make_plan([name], img_size=claim.img_size, device="cpu", image="noise")
    except (ZooError, UserError) as error:
        return str(error)
    return plan.cases[0]


def _check(pool: Pool, claim: Claim, case: Case) -> Check:
    worker = pool.start(case)
    try:
        found = worker.ask("count", fuse=claim.fused)
    except WorkerFault as fault:
        return Check(claim, error=str(fault))
    finally:
        worker.stop()
    return Check(claim, found.macs, found.doubts)


def _ours(model: str) -> bool:
    """Whether a name is one that the zoo reads, and not a bare one of timm's."""
    return model in MODELS or any(mark in model for mark in ":+[")


def _family(model: str) -> str:
    if not _ours(model):
        return external.families("timm").get(model.partition(".")[0], model)
    named = parse_name(model)
    return named.family if isinstance(named.spec, ModelSpec) else model


def _rounding(gmacs: str) -> float:
    """Half a unit in the last place of a figure, in multiply-adds."""
    exponent = decimal.Decimal(gmacs).as_tuple().exponent
    return 0.5 * 10.0 ** int(exponent) * 1e9


def show(checks: Sequence[Check]) -> RenderableType:
    """Lay checks out as a table for people, with a line that sums them up."""
    from rich.console import Group
    from rich.text import Text

    from datbench.reports.txt import plain_table

    table = plain_table()
    for title in ("model", "input", "ours\nGMACs", "published\nGMACs", "difference", "note"):
        text = title in ("model", "note")
        table.add_column(title, justify="left" if text else "right", overflow="fold")
    for check in checks:
        macs, published, difference = check.macs, check.claim.macs, check.difference
        table.add_row(
            Text(check.claim.model),
            str(check.claim.img_size),
            "" if macs is None else f"{macs / 1e9:.4f}",
            "" if published is None else f"{published / 1e9:g}",
            "" if difference is None else f"{difference:+.2%}",
            Text(check.note),
            style="" if check.agrees else "red",
        )
    compared = [check for check in checks if check.claim.macs is not None]
    agreeing = sum(check.agrees for check in compared)
    said = (
        f"{agreeing} of {len(compared)} agree with what is published, within {TOLERANCE:.0%} or "
        "its rounding."
    )
    return Group(table, "", Text(said))
