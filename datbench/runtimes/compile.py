"""torch.compile: graphs that Dynamo finds, compiled by a backend, Inductor unless told.

`prepare_s` is what Dynamo, AOTAutograd and the backend took, by their own account, from an empty
cache; processes that come later in a run find it filled. `first_call_ms` is the whole first call,
in which that happens. Where Dynamo broke the model into several graphs the row is `graph_breaks`
and names the reasons; what was compiled again while it was warmed up or timed shows as
`recompiles`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from datbench.errors import UserError
from datbench.records import Measurement
from datbench.runtimes import Program, Running, Runtime, first_call, runtime
from datbench.runtimes._export import explained

SETTLING = 3  # calls after the first, in which sizes that change would make it compile again
NAMED = 4  # reasons and places in a note
RESUMED = "torch_dynamo_resume_"  # how Dynamo calls the rest of a function


@runtime(
    "compile",
    order=1,
    choices={
        "mode": ("default", "reduce_overhead", "max_autotune", "max_autotune_no_cudagraphs"),
    },
)
class Compile(Runtime):
    """torch.compile on the whole model.

    Args:
        mode: "default", "reduce_overhead", "max_autotune" or "max_autotune_no_cudagraphs".
        dynamic: whether shapes are symbols; None leaves it to Dynamo.
        backend: "inductor", or another that torch knows, such as "cudagraphs" or "aot_eager".
        fullgraph: fail where Dynamo would break the graph.
    """

    def __init__(
        self,
        *,
        mode: str = "default",
        dynamic: bool | None = None,
        backend: str = "inductor",
        fullgraph: bool = False,
    ) -> None:
        if backend not in (backends := torch._dynamo.list_backends(exclude_tags=())):
            raise UserError(f"compile: backend={backend!r}; expected one of {', '.join(backends)}")
        self.mode, self.dynamic = mode.replace("_", "-"), dynamic
        self.backend, self.fullgraph = backend, fullgraph

    def start(self, program: Program) -> Running:
        """Compile in the first call, and look at what Dynamo made of the model."""
        from torch._dynamo import utils
        from torch._inductor import config
        from torch._inductor.async_compile import shutdown_compile_workers

        if program.folder is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(program.folder / f"{program.key}.inductor")
        options: dict[str, Any] = {"mode": self.mode} if self.backend == "inductor" else {}
        compiled = torch.compile(
            program.model,
            dynamic=self.dynamic,
            backend=self.backend,
            fullgraph=self.fullgraph,
            **options,
        )

        step = functools.partial(program.run, compiled)
        torch._dynamo.reset()
        utils.counters.clear()
        utils.clear_compilation_metrics()
        with explained("torch.compile", program.model):
            first = first_call(step, program.device)
            breaks = {_reason(why): n for why, n in utils.counters["graph_break"].items()}
            places = [_place(m) for m in utils.get_compilation_metrics() if _resumes(m)]
            for _ in range(SETTLING):
                step()
        shutdown_compile_workers()  # they would be in the way of what is timed
        metrics = utils.get_compilation_metrics()
        spent_s = sum(m.entire_frame_compile_time_s or 0.0 for m in metrics)
        again = [_reason(m.recompile_reason) for m in metrics if m.recompile_reason]
        facts = {
            "mode": self.mode if self.backend == "inductor" else None,
            "dynamic": self.dynamic,
            "backend": self.backend,
            "graphs": utils.counters["stats"]["unique_graphs"],
            "graph_breaks": breaks,
            "broken_at": places,
            "recompiles": again,
            "compile_threads": config.compile_threads,
        }
        measured = [
            Measurement("prepare_s", spent_s),
            first,
            Measurement(
                "graph_breaks", sum(breaks.values()), _told("graph_breaks: ", [*breaks, *places])
            ),
            Measurement("recompiles", len(again), _told("recompiles: ", again)),
        ]
        return Running(step, program.answers, facts, measured)


def _resumes(metrics: Any) -> bool:
    """Whether what was compiled is the rest of a function behind a graph break."""
    return str(metrics.co_name).startswith(RESUMED)


def _place(metrics: Any) -> str:
    """Function, file and line of a graph break."""
    function, _, line = str(metrics.co_name).removeprefix(RESUMED).rpartition("_at_")
    function = re.sub(r"^in_", "", function)
    return f"{function}, {Path(str(metrics.co_filename)).name}:{line}"


def _reason(text: str) -> str:
    """First line of what Dynamo says, and what it was about."""
    about = re.search(r"Developer debug context: (.*)", text)
    return text.strip().partition("\n")[0] + (f" ({about[1].strip()})" if about else "")


def _told(flag: str, reasons: Collection[str]) -> tuple[str, ...]:
    """A doubt that names the first reasons, if there are any."""
    told = list(dict.fromkeys(reasons))
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return (f"{flag}{'; '.join(told[:NAMED])}{more}",) if told else ()
