"""How latency and throughput grow with the batch, and where throughput stops growing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from datbench.records import Record, Workload
from datbench.reports.cells import labels, rounded

SHARE = 0.95  # of the best throughput


@dataclasses.dataclass(frozen=True)
class Curve:
    """A model under workloads that differ in the batch alone, on machines of one kind.

    Args:
        label: tells it from the other curves.
        records: by ascending batch, two or more.
    """

    label: str
    records: Sequence[Record]

    @property
    def saturation(self) -> int | None:
        """The batch from which on throughput hardly grows; None where it still does."""
        return saturation([(r.workload.batch_size, _throughput(r)) for r in self.records])

    def told(self) -> str:
        """Say it in a line."""
        best = max(self.records, key=_throughput)
        most = f"{rounded(_throughput(best))} img/s at batch {best.workload.batch_size}"
        hosts = {r.environment.host for r in self.records if r.environment}
        apart = f"; measured on {len(hosts)} machines" if len(hosts) > 1 else ""
        if self.saturation is None:
            return f"{self.label}: throughput still grows at the largest batch, {most}{apart}."
        return (
            f"{self.label}: from batch {self.saturation} on, throughput is within "
            f"{1 - SHARE:.0%} of its best, {most}{apart}."
        )


def saturation(points: Sequence[tuple[int, float]]) -> int | None:
    """Return the smallest batch with `SHARE` of the best throughput.

    Args:
        points: batch and throughput, by ascending batch.
    Returns:
        None if that is the largest batch: a larger one might do better.
    """
    best = max(throughput for _, throughput in points)
    batch = next(batch for batch, throughput in points if throughput >= SHARE * best)
    return batch if batch < points[-1][0] else None


def curves(records: Sequence[Record]) -> list[Curve]:
    """Find the curves among the records of one kind of machine."""
    found: dict[tuple[str, str, Workload], dict[int, Record]] = {}
    for record in records:
        if not record.error and _throughput(record):
            alike = record.run_id, record.model, _any_batch(record).workload
            found.setdefault(alike, {}).setdefault(record.workload.batch_size, record)
    several = [[of[batch] for batch in sorted(of)] for of in found.values() if len(of) > 1]
    names = labels([_any_batch(of[0]) for of in several])
    return [Curve(name, of) for name, of in zip(names, several, strict=True)]


def _any_batch(record: Record) -> Record:
    """The same for every batch, and every GPU of a machine."""
    work = record.workload
    alike = dataclasses.replace(work, batch_size=1, device=work.device.partition(":")[0])
    return dataclasses.replace(record, workload=alike)


def _throughput(record: Record) -> float:
    return float(record.values.get("throughput_img_s") or 0)
