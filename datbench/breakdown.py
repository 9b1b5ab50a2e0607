"""Where in a model the multiply-adds are: by module, as a tree, or by operator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from datbench.counters import Count, ModuleRow, OperatorRow
from datbench.plan import Case, Plan
from datbench.pool import Pool, WorkerFault
from datbench.rows import as_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from datbench.metrics.latency import ModuleTimes

DEPTH = 2  # of the tree for people, unless asked for more
MODULE_COLUMNS = (
    "model", "module", "type", "params", "macs", "share", "macs_products", "macs_second_opinion",
    "activations", "output", "latency_ms",
)  # fmt: skip
OPERATOR_COLUMNS = ("model", "operator", "calls", "macs", "share", "activations", "counted")


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """The parts of one model.

    Args:
        case: the model and its input.
        count: by module and by operator; None where the model failed.
        times: of its modules, where they were asked for.
        environment: what the times depend on, and the versions.
        error: why the model failed.
    """

    case: Case
    count: Count | None = None
    times: ModuleTimes | None = None
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""

    @property
    def modules(self) -> tuple[ModuleRow, ...]:
        """Modules in the order of the model."""
        return self.count.modules if self.count else ()

    @property
    def operators(self) -> tuple[OperatorRow, ...]:
        """Operators, the most expensive first, then those without a count."""
        return self.count.operators if self.count else ()

    def latency_ms(self, module: str) -> float | None:
        """Median time of a module, where it was asked for and the module is called."""
        return self.times.latency_ms.get(module) if self.times else None

    def share(self, macs: int | None) -> float | None:
        """Part of the whole model's multiply-adds."""
        whole = self.count.macs if self.count else None
        return macs / whole if whole and macs is not None else None

    @property
    def notes(self) -> list[str]:
        """What must be said under the table."""
        notes = [f"{self.case.label} failed: {self.error}"] if self.error else []
        if self.count and self.count.macs is not None:
            notes += [f"{self.case.label}: {doubt}" for doubt in self.count.doubts]
        if self.times:
            work = self.case.workload
            notes.append(
                f"ms: median of {self.times.steps} steps of batch {work.batch_size} in "
                f"{work.dtype} on {self.environment['device_name']}, {work.threads} threads; "
                f"marking the modules changes a step by {self.times.overhead:+.1%}."
            )
        return notes


def break_down(
    plan: Plan,
    *,
    depth: int | None = None,
    time_modules: bool = False,
    progress: Callable[[str, float], None] = lambda _, __: None,
) -> Iterator[Breakdown]:
    """Count each model of a plan by its parts, in a process of its own.

    Nothing is run to be counted, unless the model needs data; timing runs it on its device.
    """
    with Pool(plan.protocol.timeout_s, plan.cases) as pool:
        for number, case in enumerate(plan.cases):
            progress(f"{case.label}: by its parts", number / len(plan.cases))
            worker = pool.start(case)
            found = Breakdown(case)
            try:
                found = dataclasses.replace(found, environment=worker.ask("facts"))
                count = worker.ask("count", fuse=False)
                failed = "; ".join(count.doubts) if count.macs is None else ""
                found = dataclasses.replace(found, count=count, error=failed)
                if time_modules:
                    worker.ask("build")
                    times = worker.ask("module_times", depth=depth)
                    found = dataclasses.replace(found, times=times)
            except WorkerFault as fault:
                found = dataclasses.replace(found, error=str(fault))
            finally:
                worker.stop()
            yield found


def module_rows(breakdown: Breakdown, depth: int | None) -> list[dict[str, Any]]:
    """Rows of `MODULE_COLUMNS`: one a module, figures of one image."""
    label = breakdown.case.label
    found = []
    for row in breakdown.modules:
        if depth is None or _depth(row.name) <= depth:
            figures = (row.params, row.macs, breakdown.share(row.macs), row.products, row.second)
            rest = (row.activations, row.output, breakdown.latency_ms(row.name))
            values = (label, row.name, row.kind, *figures, *rest)
            found.append(dict(zip(MODULE_COLUMNS, values, strict=True)))
    return found


def operator_rows(breakdown: Breakdown) -> list[dict[str, Any]]:
    """Rows of `OPERATOR_COLUMNS`: one an operator, figures of one image, calls of one step."""
    label = breakdown.case.label
    found = []
    for row in breakdown.operators:
        figures = (row.calls, row.macs, breakdown.share(row.macs), row.activations)
        values = (label, row.name, *figures, row.counted)
        found.append(dict(zip(OPERATOR_COLUMNS, values, strict=True)))
    return found


def render(
    breakdowns: Sequence[Breakdown], form: str, *, by_op: bool = False, depth: int | None = None
) -> str:
    """Write breakdowns as "csv", "json" or "txt"; csv has a row for each module or operator."""
    if form == "txt":
        from datbench.reports.txt import plain_text

        return plain_text(*(show(b, by_op=by_op, depth=depth) for b in breakdowns))
    rows = [operator_rows(b) if by_op else module_rows(b, depth) for b in breakdowns]
    if form == "csv":
        columns = OPERATOR_COLUMNS if by_op else MODULE_COLUMNS
        return as_text([row for found in rows for row in found], "csv", columns)
    what = "operators" if by_op else "modules"
    return as_text(
        [
            {
                "model": b.case.label,
                "workload": dataclasses.asdict(b.case.workload),
                "environment": b.environment,
                "macs": b.count.macs if b.count else None,
                "macs_second_opinion": b.count.second if b.count else None,
                "timing_overhead": b.times.overhead if b.times else None,
                "doubts": list(b.count.doubts) if b.count else [],
                "error": b.error or None,
                what: found,
            }
            for b, found in zip(breakdowns, rows, strict=True)
        ],
        "json",
        (),
    )


def show(breakdown: Breakdown, *, by_op: bool = False, depth: int | None = None) -> RenderableType:
    """Lay one breakdown out for people."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    if breakdown.count is not None and breakdown.modules:
        work = breakdown.case.workload
        whole = breakdown.modules[0]
        size = "x".join(map(str, work.input_shape))
        head = f"{breakdown.case.label}, one input of {size}"
        if work.batch_size > 1:
            head += f" in a batch of {work.batch_size}"
        figures = f"{short(whole.params)} parameters, {short(whole.macs)} MACs"
        parts = [Text(f"{head}: {figures}", "bold"), ""]
        tables = _operator_table(breakdown) if by_op else _module_table(breakdown, depth or DEPTH)
        parts += [*tables, ""]
    return Group(*parts, *map(Text, breakdown.notes), "")


def _module_table(breakdown: Breakdown, depth: int) -> Iterator[RenderableType]:
    from rich.text import Text

    from datbench.reports.cells import rounded
    from datbench.reports.txt import plain_table

    rows = [row for row in breakdown.modules if _depth(row.name) <= depth]
    shown = [row for row in rows if row.params or row.macs or not row.name]
    timed = breakdown.times is not None
    table = plain_table()
    for title in ("module", "type", "params", "MACs", "share", "activations", "output"):
        text = title in ("module", "type", "output")
        table.add_column(title, justify="left" if text else "right", no_wrap=title != "output")
    if timed:
        table.add_column("ms", justify="right", no_wrap=True)
    for row, branch in zip(shown, _branches([row.name for row in shown]), strict=True):
        name = Text(branch, "dim")
        name.append(row.name.rpartition(".")[2] or breakdown.case.label)
        share = breakdown.share(row.macs)
        cells = [
            row.kind,
            short(row.params),
            short(row.macs),
            "" if share is None else f"{share:.1%}",
            short(row.activations),
            row.output,
        ]
        table.add_row(name, *cells, *([rounded(breakdown.latency_ms(row.name))] if timed else []))
    yield table
    if hidden := len(rows) - len(shown):
        yield Text(f"{hidden} modules without parameters and MACs are not shown.", "dim")


def _branches(names: Sequence[str]) -> Iterator[str]:
    """Lines that join each name to the one it belongs to, as in a tree of files."""
    last = {name.rpartition(".")[0]: name for name in names if name}  # of what each one holds
    for name in names:
        line = ""
        parts = name.split(".") if name else []
        for level in range(len(parts)):
            ends = last[".".join(parts[:level])] == ".".join(parts[: level + 1])
            if level == len(parts) - 1:
                line += "└─ " if ends else "├─ "
            else:
                line += "   " if ends else "│  "
        yield line


def _operator_table(breakdown: Breakdown) -> Iterator[RenderableType]:
    from rich.text import Text

    from datbench.reports.txt import plain_table

    table = plain_table()
    for title in ("operator", "calls", "MACs", "share", "activations", "counted"):
        text = title in ("operator", "counted")
        table.add_column(title, justify="left" if text else "right", no_wrap=True)
    for row in breakdown.operators:
        if row.counted in ("product", "other"):
            share = breakdown.share(row.macs) or 0.0
            calls = "" if row.calls is None else str(row.calls)
            figures = (short(row.macs), f"{share:.1%}", short(row.activations))
            table.add_row(row.name, calls, *figures, row.counted)
    yield table
    for counted, said in (
        ("negligible", "Without multiply-adds worth counting"),
        ("unknown", "Without a rule"),
    ):
        listed = [
            f"{row.name} ({row.calls})" for row in breakdown.operators if row.counted == counted
        ]
        if listed:
            yield ""
            yield Text(f"{said}: {', '.join(listed)}.")


def short(value: float | None) -> str:
    """Three significant digits with a suffix: 4.59 G, 28.3 M, 150 K, 96."""
    from datbench.reports.cells import rounded

    if value is None:
        return ""
    for unit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " K")):
        if abs(value) >= unit:
            return rounded(value / unit) + suffix
    return str(value)


def _depth(name: str) -> int:
    return len(name.split(".")) if name else 0
