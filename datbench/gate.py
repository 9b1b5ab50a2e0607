"""Conditions on verdicts, on which a command ends with exit status 4."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

from datbench.errors import UserError
from datbench.records import Record
from datbench.reports.txt import told


@dataclasses.dataclass(frozen=True)
class Gate:
    """A condition such as `slower>5%`.

    Args:
        direction: "slower" or "faster".
        percent: by which a model's whole interval must lie beyond the baseline.
    """

    direction: str
    percent: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read a condition.

        Raises:
            UserError: it is none.
        """
        match = re.fullmatch(r"\s*(slower|faster)\s*>\s*(\d+(?:\.\d+)?)\s*%\s*", text)
        if match is None:
            raise UserError(f"condition {text!r} is none; write e.g. 'slower>5%' or 'faster>2%'")
        return cls(match[1], float(match[2]))

    def holds(self, record: Record) -> bool:
        """Whether the interval of a record's ratio lies beyond the limit as a whole.

        "faster>5%" holds if the baseline takes more than 5 % longer, as "1.05x faster" says.
        """
        compared = record.comparison
        if compared is None or compared.verdict is None or not compared.lo or not compared.hi:
            return False
        surely = compared.lo if self.direction == "slower" else 1 / compared.hi
        return surely > 1 + self.percent / 100


def failures(records: Sequence[Record], gates: Sequence[Gate]) -> Iterator[str]:
    """Yield what to say for each record on which a condition holds."""
    for record in records:
        for gate in gates:
            if gate.holds(record) and record.comparison is not None:
                yield (
                    f"{record.model}: {told(record.comparison)} than "
                    f"{record.comparison.baseline}, beyond {gate.direction}>{gate.percent:g}%"
                )


def unjudged(records: Sequence[Record]) -> list[str]:
    """Models whose comparison has no verdict, so that no condition can hold."""
    return [r.model for r in records if r.comparison and r.comparison.verdict is None]
