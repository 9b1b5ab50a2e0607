"""What `datbench predict` and `datbench fit` answer: rows of memory and of batches."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from datbench.caching import OutOfMemory
from datbench.device import MIB
from datbench.errors import UserError
from datbench.fitting import largest_batch, parse_memory
from datbench.plan import Case, make_plan
from datbench.pool import Pool, Worker, WorkerFault
from datbench.reports.cells import rounded
from datbench.reports.txt import plain_table
from zoo import ZooError

PREDICTED = (
    "model", "mode", "batch_size", "img_size", "dtype", "weights_mib", "predicted_before_mib",
    "predicted_peak_allocated_mib", "predicted_peak_reserved_mib", "error",
)  # fmt: skip
FITTED = (
    "model", "mode", "img_size", "dtype", "memory_mib", "source", "largest_batch",
    "peak_reserved_mib", "error",
)  # fmt: skip
NOTE = (
    "Predicted from tensors without data, by a model of torch's allocator. Not counted: CUDA's "
    "context (some hundred MiB outside of it) and cuDNN's workspaces."
)


def cases(
    models: Sequence[str], *, dtype: str, amp: bool, device: str = "cuda:0", **options: Any
) -> list[Case]:
    """Plan cases for a CUDA device that need not be there."""
    if amp and dtype == "float32":
        dtype = "float16"
    plan = make_plan(models, command="profile", device="cpu", dtype=dtype, amp=amp, **options)
    return [
        dataclasses.replace(case, workload=dataclasses.replace(case.workload, device=device))
        for case in plan.cases
    ]


def predictions(models: Sequence[str], **options: Any) -> Iterator[dict[str, Any]]:
    """Predict the memory of each model; a row of `PREDICTED` each.

    Args:
        models: names as the zoo reads them.
        options: as `datbench.plan.make_plan` takes them; `dtype` and `amp` are needed.
    Raises:
        UserError, ZooError: at once, for what cannot be planned.
    """
    planned = cases(models, **options)

    def rows() -> Iterator[dict[str, Any]]:
        from datbench.prediction import predict

        for case in planned:
            row = dict.fromkeys(PREDICTED) | _told(case)
            row["batch_size"] = case.workload.batch_size
            with _kept(row):
                found = predict(case)
                row |= {
                    "weights_mib": found.weights / MIB,
                    "predicted_before_mib": found.before / MIB,
                    "predicted_peak_allocated_mib": found.peak_allocated / MIB,
                    "predicted_peak_reserved_mib": found.peak_reserved / MIB,
                }
            yield row

    return rows()


def fits(
    models: Sequence[str],
    *,
    memory: str | None = None,
    device: str | None = None,
    optimizer: str | None = None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Find the largest batch of each model, in inference and training; a row of `FITTED` each.

    Args:
        models: names as the zoo reads them.
        memory: what torch may take, e.g. "8GiB"; all that is free on `device`.
        device: "cuda" or "cuda:N", on which batches are tried; predicted without one.
        optimizer: of training.
        options: as `datbench.plan.make_plan` takes them; `dtype` and `amp` are needed.
    Raises:
        UserError, ZooError: at once, for what cannot be planned.
    """
    from datbench.device import resolve_device

    if memory is None and device is None:
        raise UserError("how much memory is there? give --memory 8GiB, or --device cuda to try it")
    limit = None if memory is None else parse_memory(memory)
    where = "cuda:0" if device is None else resolve_device(device)
    if where == "cpu":
        raise UserError(f"fit is for CUDA devices; got --device {device}")
    planned = cases(models, device=where, **options)
    trained = cases(models, device=where, mode="train", optimizer=optimizer, **options)

    def rows() -> Iterator[dict[str, Any]]:
        for pair in zip(planned, trained, strict=True):
            for case in pair:
                row = dict.fromkeys(FITTED) | _told(case)
                row["memory_mib"] = None if limit is None else limit / MIB
                row["source"] = "predicted" if device is None else "measured"
                with _kept(row):
                    need = _Predicted(case, limit or 0) if device is None else _Tried(case, limit)
                    row["largest_batch"] = largest_batch(need, need.memory)
                    row["peak_reserved_mib"] = need.last / MIB if row["largest_batch"] else None
                yield row

    return rows()


def show(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> RenderableType:
    """Lay rows out as a table with what must be said under it."""
    shown = [c for c in columns if c != "error" and any(row[c] is not None for row in rows)]
    table = plain_table()
    for column in shown:
        title = column.removesuffix("_mib").replace("_", " ")
        title += "\nMiB" if column.endswith("_mib") else ""
        table.add_column(Text(title), justify="left" if column == "model" else "right")
    for row in rows:
        cells = [rounded(v) if isinstance(v := row[c], float) else str(v or "") for c in shown]
        table.add_row(*map(Text, cells), style="red" if row["error"] else "")
    errors = [f"{row['model']} failed: {row['error']}" for row in rows if row["error"]]
    predicted = any(row.get("source", "predicted") == "predicted" for row in rows)
    return Group(table, "", *map(Text, [*errors, *([NOTE] if predicted else [])]))


class _Predicted:
    """Memory that a batch is predicted to need."""

    def __init__(self, case: Case, memory: int) -> None:
        self._case, self.memory = case, memory
        self.last = 0

    def __call__(self, batch_size: int) -> int | None:
        from datbench.prediction import predict

        try:
            found = predict(_sized(self._case, batch_size), limit=self.memory)
        except OutOfMemory:
            return None
        self.last = found.peak_reserved
        return found.peak_allocated


class _Tried:
    """Memory that a batch took on the device, each in a process of its own."""

    def __init__(self, case: Case, memory: int | None) -> None:
        self._case, self._limit = case, memory
        self.last = 0
        with Pool(600.0) as pool:
            self.memory = memory or int(pool.start(case).ask("room") * MIB)

    def __call__(self, batch_size: int) -> int | None:
        with Pool(600.0) as pool:
            worker: Worker = pool.start(_sized(self._case, batch_size))
            try:
                allocated, reserved = worker.ask("fit", limit=self._limit)
            except WorkerFault as fault:
                if str(fault).startswith("out of memory"):
                    return None
                raise
        self.last = reserved
        return allocated


def _sized(case: Case, batch_size: int) -> Case:
    work = dataclasses.replace(case.workload, batch_size=batch_size)
    return dataclasses.replace(case, workload=work)


def _told(case: Case) -> dict[str, Any]:
    work = case.workload
    return {
        "model": case.label,
        "mode": work.step,
        "img_size": work.img_size,
        "dtype": work.arithmetic,
    }


@contextlib.contextmanager
def _kept(row: dict[str, Any]) -> Iterator[None]:
    """Let a model that fails be a row with an error, as in every other table."""
    try:
        yield
    except (ZooError, WorkerFault) as error:
        row["error"] = str(error)
    except Exception as error:  # noqa: BLE001 - a model may raise anything; the others go on
        row["error"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
