"""Which models survive which runtime, and what stops the others: `datbench exportability`.

Each model is built, run by eager PyTorch, run by the runtime and compared, in a process of its own
for each runtime. Parameters that are all alike, such as offsets that begin at zero, are shaken by
seeded noise first: what a wrong export does to them would not show otherwise.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datbench.errors import UserError
from datbench.plan import Case, make_plan
from datbench.pool import Pool, WorkerFault
from datbench.runtimes import RUNTIMES
from datbench.schedule import DEFAULT

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from datbench.outputs import Parity

COLUMNS = (
    "model", "input", "runtime", "verdict", "parity_rel", "parity_abs", "tolerance", "seconds",
    "reason",
)  # fmt: skip
MAP = "64x28x28"  # of a block alone
WORKS, WRONG, FAILS = "works", "wrong", "fails"


@dataclasses.dataclass(frozen=True)
class Survival:
    """How a model fares under a runtime.

    Args:
        model: as the zoo names it.
        input: its shape, "CxHxW".
        runtime: with its options.
        verdict: "works", "wrong" or "fails".
        relative, absolute, tolerance: of the parity with eager PyTorch, see `datbench.outputs`.
        seconds: that making it ready and running it once took.
        reason: why it fails, or where it is wrong.
    """

    model: str
    input: str
    runtime: str
    verdict: str
    relative: float | None = None
    absolute: float | None = None
    tolerance: float | None = None
    seconds: float | None = None
    reason: str = ""

    def row(self) -> dict[str, Any]:
        """Return the values of `COLUMNS`."""
        values = (
            self.model, self.input, self.runtime, self.verdict, self.relative, self.absolute,
            self.tolerance, self.seconds, self.reason or None,
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))


def runtimes_for(device: str, names: Sequence[str]) -> list[str]:
    """The runtimes that were asked for, or all that there are for a device, but eager itself."""
    kind = device.partition(":")[0]
    return list(names) or [
        name
        for name, spec in sorted(RUNTIMES.items(), key=lambda item: item[1].order)
        if name != "eager" and spec.device in ("", kind) and not spec.missing()
    ]


def runtime_of(form: str | None, file: Path, opset: int | None) -> str:
    """Name the runtime whose files are of a form, or have a suffix.

    Raises:
        UserError: the suffix is not that of the form, or the form has no opset.
    """
    known = {spec.form: spec for spec in RUNTIMES.values() if spec.form}
    for spec in known.values():
        if spec.form == form or (form is None and spec.suffix == file.suffix):
            break
    else:
        suffixes = ", ".join(spec.suffix for spec in known.values())
        raise UserError(f"{file} has no known format; end it in {suffixes}, or give --to")
    if file.suffix != spec.suffix:
        raise UserError(f"{file}: a file for {spec.form} ends in {spec.suffix}")
    if opset is None:
        return spec.name
    if "opset" not in (spec.options or ()):
        raise UserError(f"--opset is for onnx and openvino; {spec.form} has none")
    return f"{spec.name}[opset={opset}]"


def cases_of(models: Sequence[str], runtimes: Sequence[str], **options: Any) -> list[Case]:
    """A case for each model under each runtime, model by model."""
    cases = []
    for model in models:
        own = dict(options)
        alone = model.startswith("block:")
        if alone and not own.get("input_shape"):
            own |= {"input_shape": MAP, "img_size": None}
        planned = make_plan([model], command="profile", runtimes=runtimes, **own).cases
        cases += [dataclasses.replace(case, label=model) for case in planned]
    return cases


def survivals(
    cases: Sequence[Case], progress: Callable[[str, float], None] = lambda _, __: None
) -> Iterator[Survival]:
    """Try each case in a process of its own."""
    with Pool(DEFAULT.timeout_s, cases) as pool:
        for number, case in enumerate(cases):
            progress(f"{case.label} ({case.workload.runtime})", number / len(cases))
            yield _survival(pool, case)


def _survival(pool: Pool, case: Case) -> Survival:
    began = time.monotonic()
    worker = pool.start(case)
    try:
        apart = worker.ask("survives")
    except WorkerFault as fault:
        return _of(case, reason=str(fault))
    finally:
        worker.stop()
    return _of(case, apart, time.monotonic() - began)


def _of(
    case: Case, apart: Parity | None = None, seconds: float | None = None, reason: str = ""
) -> Survival:
    """Judge a case by its parity; without one it fails."""
    shape = "x".join(map(str, case.workload.input_shape))
    known = (case.label, shape, case.workload.runtime)
    if apart is None:
        return Survival(*known, FAILS, reason=reason)
    return Survival(
        *known,
        WORKS if apart.right else WRONG,
        apart.relative,
        apart.absolute,
        apart.tolerance,
        seconds,
        "" if apart.right else apart.where,
    )


def export(case: Case, file: Path) -> Survival:
    """Export a model, load what was written and compare; the file is there only if it is right.

    Args:
        case: its runtime is the one that runs such files.
        file: where it goes; OpenVINO's weights, and ONNX's beyond 2 GB, go beside it.
    """
    with Pool(DEFAULT.timeout_s, [case]) as pool:
        worker = pool.start(case)
        try:
            apart, written = worker.ask("export", stem=file.stem)
        except WorkerFault as fault:
            return _of(case, reason=str(fault))
        finally:
            worker.stop()
        found = _of(case, apart)
        if found.verdict == WORKS:
            for path in written:
                part = file.with_name(f".{path.name}.{os.getpid()}.part")
                shutil.copyfile(path, part)
                part.replace(file.with_name(path.name))
    return found


def show(found: Sequence[Survival]) -> RenderableType:
    """Lay out a matrix of models and runtimes, the reasons below it."""
    from rich.console import Group
    from rich.text import Text

    from datbench.reports.txt import plain_table

    runtimes = list(dict.fromkeys(entry.runtime for entry in found))
    table = plain_table()
    for title in ("model", "input", *runtimes):
        table.add_column(Text(title), overflow="fold")
    rows: dict[tuple[str, str], dict[str, Survival]] = {}
    for entry in found:
        rows.setdefault((entry.model, entry.input), {})[entry.runtime] = entry
    for (model, shape), cells in rows.items():
        table.add_row(Text(model), shape, *(_cell(cells.get(name)) for name in runtimes))
    notes = [
        Text(f"{entry.model} ({entry.runtime}) {entry.verdict}: {entry.reason}")
        for entry in found
        if entry.reason
    ]
    works = sum(entry.verdict == WORKS for entry in found)
    said = (
        f"{works} of {len(found)} work: they give eager's answers. The number is the largest "
        "difference over the largest magnitude of its channel."
    )
    return Group(table, "", *notes, Text(said))


def _cell(entry: Survival | None) -> Text:
    from rich.text import Text

    if entry is None:
        return Text("")
    apart = "" if entry.relative is None else f" {entry.relative:.0e}"
    return Text(f"{entry.verdict}{apart}", "" if entry.verdict == WORKS else "red")
