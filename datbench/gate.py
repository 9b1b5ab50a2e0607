"""Conditions on verdicts, on which a command ends with exit status 4."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

from datbench.errors import UserError
from datbench.records import Record
from datbench.reports.cells import told

DIRECTIONS = ("slower", "faster")
GROWTH = ("params", "macs", "memory")  # what may have grown between two runs


@dataclasses.dataclass(frozen=True)
class Gate:
    """A condition such as `slower>5%`.

    Args:
        direction: "slower" or "faster"; between two runs also a figure that grew.
        percent: by which a model's whole interval must lie beyond the baseline.
    """

    direction: str
    percent: float

    @classmethod
    def parse(cls, text: str, among: Sequence[str] = DIRECTIONS) -> Gate:
        """Read a condition.

        Args:
            text: as a user writes it.
            among: what it may be about.
        Raises:
            UserError: it is none.
        """
        match = re.fullmatch(r"\s*(\w+)\s*>\s*(\d+(?:\.\d+)?)\s*%\s*", text)
        if match is None or match[1] not in among:
            known = " or ".join(f"'{word}>{2 + 3 * (i == 0)}%'" for i, word in enumerate(among))
            raise UserError(f"condition {text!r} is none; write e.g. {known}")
        return cls(match[1], float(match[2]))

    def __str__(self) -> str:
        return f"{self.direction}>{self.percent:g}%"

    def beyond(self, lo: float | None, hi: float | None) -> bool:
        """Whether an interval of a ratio lies beyond the limit as a whole.

        "faster>5%" holds if the baseline takes more than 5 % longer, as "1.05x faster" says.
        """
        if not lo or not hi:
            return False
        return (lo if self.direction == "slower" else 1 / hi) > 1 + self.percent / 100

    def holds(self, record: Record) -> bool:
        """Whether the interval of a record's ratio lies beyond the limit as a whole."""
        compared = record.comparison
        if compared is None or compared.verdict is None:
            return False
        return self.beyond(compared.lo, compared.hi)


def failures(records: Sequence[Record], gates: Sequence[Gate]) -> Iterator[str]:
    """Yield what to say for each record on which a condition holds."""
    for record in records:
        for gate in gates:
            if gate.holds(record) and record.comparison is not None:
                yield (
                    f"{record.model}: {told(record.comparison)} than "
                    f"{record.comparison.baseline}, beyond {gate}"
                )


def unjudged(records: Sequence[Record]) -> list[str]:
    """Models that were timed and have no verdict, so that no condition can hold."""
    baselines = {record.comparison.baseline for record in records if record.comparison}
    return [
        record.model
        for record in records
        if record.error is None and record.model not in baselines
        if record.comparison is None or record.comparison.verdict is None
    ]
