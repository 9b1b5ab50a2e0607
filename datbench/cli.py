"""The command line: parse, call, show. Nothing here measures, and nothing imports torch."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import rich_click as click
from click.shell_completion import CompletionItem

from datbench import catalogue
from datbench.api import Execution, make
from datbench.errors import UserError
from datbench.plan import DTYPES, MODES, add_plugins, make_plan
from datbench.rows import as_text
from datbench.runtimes import RUNTIMES
from datbench.schedule import DEFAULT
from datbench.store import RunFolder
from zoo import ZooError, detector_yaml, list_blocks

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from datbench.records import Record
    from datbench.reports import Content, ReportFile
    from datbench.request import Request
    from datbench.store import RunFolder

FAILED, USAGE, FLAGGED, GATED, INTERRUPTED = 1, 2, 3, 4, 130
T = TypeVar("T")


class OneLine(click.RichGroup):
    """A group that tells each mistake in one line on stderr and exits with status 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; as click does, but errors take one line."""
        run = functools.partial(
            super().main, args, prog_name, complete_var, standalone_mode=False, **extra
        )
        if not standalone_mode:
            return run()
        try:
            status: Any = run()
        except click.ClickException as error:
            message = " ".join(error.format_message().split())
            _complain(f"Error: {message}")
            sys.exit(error.exit_code)
        except (UserError, ZooError) as error:
            _complain(f"Error: {error}")
            sys.exit(USAGE)
        except click.Abort:
            click.echo("Interrupted.", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(status if isinstance(status, int) else 0)


def _complain(text: str) -> None:
    """Write a line on stderr, in which nothing moves the cursor or changes colours."""
    from datbench.reports.cells import VISIBLE

    click.echo(text.translate(VISIBLE), err=True)


class Variadic(click.RichCommand):
    """A command some of whose options take several words: `--models dat swin`.

    `--models` takes every word up to the next option, the others those that look like a value of
    theirs, so that models may stand behind them. `--slurm-KEY VALUE` becomes `--slurm KEY=VALUE`.
    """

    SEVERAL: ClassVar[Mapping[str, Callable[[str], object]]] = {
        "--models": bool,
        "--batch-size": str.isdecimal,
        "--img-size": str.isdecimal,
        "--input": lambda word: re.fullmatch(r"\d+x\d+x\d+", word),
        "--dtype": DTYPES.__contains__,
        "--mode": MODES.__contains__,
        "--runtime": lambda word: word.partition("[")[0] in RUNTIMES,
    }

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat an option before each further word of its own, as click reads it."""
        takes = {name for option in self.params for name in option.opts}
        words: list[str] = []
        option = ""  # whose words may follow
        rest = list(args)
        while rest:
            word = rest.pop(0)
            if word.startswith("--slurm-") and "--slurm" in takes:
                name, equals, value = word.removeprefix("--slurm-").partition("=")
                if not equals and rest and not rest[0].startswith("-"):
                    value, equals = rest.pop(0), "="
                words += ["--slurm", f"{name.replace('-', '_')}={value if equals else 'true'}"]
                option = ""
                continue
            if word.startswith("-"):
                option = word.partition("=")[0]
            elif words and words[-1] != option:
                several = self.SEVERAL.get(option) if option in takes else None
                if several is not None and several(word):
                    words.append(option)
                else:
                    option = ""
            words.append(word)
        ctx.meta["datbench.inside"] = option == "--models"
        return super().parse_args(ctx, words)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a further model behind `--models`."""
        if ctx.meta.get("datbench.inside") and not incomplete.startswith("-"):
            return complete_model(ctx, None, incomplete)
        return super().shell_complete(ctx, incomplete)


def complete_model(ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
    """Suggest models, blocks alone, blocks plugged into a detector, and models of libraries."""
    del ctx, param
    base, plus, _ = incomplete.partition("+")
    blocks = [f"{base}+{block}" for block in list_blocks()]
    names = blocks if plus else catalogue.names(incomplete)
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _all(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _format(*forms: str) -> Callable[[Any], Any]:
    return click.option(
        "--format",
        "form",
        type=click.Choice(["table", *forms]),
        default="table",
        show_default=True,
        help="What is printed on stdout.",
    )


PRINTED = ("csv", "json", "jsonl", "md", "tex")  # reports that are text for other programs
FORMAT = _format("csv", "json")
RESULTS = click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Folder that holds a folder for each run.",
)
OUTPUT = _all(
    click.option(
        "--output",
        "outputs",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="FILE",
        help="Also write a report, its format by suffix: .csv .html .md .tex .png ... Repeatable.",
    ),
    click.option(
        "--include-host",
        is_flag=True,
        help="Leave the host's name and home folders in what is exported.",
    ),
)
RESUME = click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with a run; what it has of these models is not measured again.",
)
PLUGIN = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.py",
    help='File with blocks or models of yours, under @zoo.block("name"). Repeatable.',
)


def _workload(*, several: bool) -> dict[str, Callable[[Any], Any]]:
    """Options of a workload; `several` lets those that span a sweep have many values."""
    more: dict[str, Any] = {"multiple": True} if several else {}

    def option(*names: str, text: str, default: Any, **facts: Any) -> Callable[[Any], Any]:
        if default is not None:
            facts |= {"default": [default] if several else default, "show_default": True}
        return click.option(*names, help=text + " Several: a sweep." * several, **more, **facts)

    return {
        "batch": option(
            "--batch-size", type=click.IntRange(1), default=1, text="Inputs in a step."
        ),
        "shape": _all(
            option(
                "--img-size",
                type=click.IntRange(1),
                default=None,
                text="Side of the input in pixels; each model's own by default.",
            ),
            option(
                "--input",
                "input_shape",
                metavar="CxHxW",
                default=None,
                text="Shape of one input instead; blocks alone need it.",
            ),
        ),
        "dtype": option(
            "--dtype",
            type=click.Choice(DTYPES),
            default="float32",
            text="Type of weights and input.",
        ),
        "mode": option(
            "--mode",
            type=click.Choice(MODES),
            default="inference",
            text="A forward, or a training step: forward and loss, backward, optimiser.",
        ),
    }


ONE, MANY = _workload(several=False), _workload(several=True)
BATCH, SHAPE = ONE["batch"], ONE["shape"]
LAYOUT = _all(
    click.option("--amp", is_flag=True, help="Run under autocast, weights in float32."),
    click.option("--channels-last", is_flag=True, help="Memory format of weights and input."),
)
ARITHMETIC = _all(ONE["dtype"], LAYOUT)
OPTIMIZER = click.option(
    "--optimizer",
    type=click.Choice(["adamw", "sgd"]),
    help="Of a training step; adamw by default.",
)
MODE = _all(ONE["mode"], OPTIMIZER)
RUNTIME = click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="RUNTIME",
    shell_complete=lambda ctx, param, text: [
        CompletionItem(name) for name in RUNTIMES if name.startswith(text)
    ],
    help="eager, compile, cudagraph, onnxruntime, openvino, torchscript or pt2; options in "
    "brackets. Repeatable: each model under each of them.",
)
HALF = click.option("--half", is_flag=True, help="The same as --dtype float16.")
FUSE = click.option(
    "--fuse", is_flag=True, help="Fold batch norms into the convolutions before them."
)
SCOPE = _all(
    click.option(
        "--nms",
        is_flag=True,
        help="Detectors: time non-maximum suppression too, and tell it apart.",
    ),
    click.option(
        "--end-to-end",
        is_flag=True,
        help="Time from a decoded photograph to boxes or classes, and tell the parts apart.",
    ),
)


def _measuring(of: Mapping[str, Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Options of what is measured, with those of a workload."""
    return _all(
        click.option(
            "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
        ),
        of["batch"],
        of["shape"],
        click.option(
            "--image",
            default="photo",
            metavar="FILE",
            help="A photograph, or 'noise'; the photographs that ultralytics ships by default.",
        ),
        of["dtype"],
        LAYOUT,
        HALF,
        of["mode"],
        OPTIMIZER,
        RUNTIME,
        FUSE,
        SCOPE,
        click.option(
            "--tf32", is_flag=True, help="CUDA: products of float32 factors cut to 10 bits."
        ),
        click.option(
            "--cudnn-benchmark/--no-cudnn-benchmark",
            default=True,
            show_default=True,
            help="CUDA: let cuDNN try its algorithms.",
        ),
        click.option(
            "--cold-cache", is_flag=True, help="CUDA: overwrite the L2 cache before each iteration."
        ),
        click.option(
            "--threads",
            type=click.IntRange(1),
            help="CPU threads of one operator; all usable cores by default.",
        ),
        click.option(
            "--seed", type=int, default=0, show_default=True, help="Of weights, noise and order."
        ),
        click.option(
            "--checkpoint",
            "checkpoints",
            multiple=True,
            metavar="[MODEL=]FILE",
            help="Weights, as safetensors or a state dict. Repeatable.",
        ),
        click.option("--rigorous", is_flag=True, help="More processes, for smaller differences."),
        click.option(
            "--budget",
            type=click.FloatRange(0, min_open=True),
            metavar="SECONDS",
            help="Start no further round after this time.",
        ),
        PLUGIN,
    )


WORKLOAD = _measuring(MANY)
EXECUTION = _all(
    click.option(
        "--executor",
        default="local",
        show_default=True,
        metavar="NAME",
        help="Where it is measured: local, or slurm.",
    ),
    click.option(
        "--gpus",
        metavar="all|0,1",
        help="GPUs of this machine that work side by side, each on a case of its own.",
    ),
    click.option(
        "--slurm",
        multiple=True,
        metavar="KEY=VALUE",
        help="What sbatch is told, also as --slurm-KEY VALUE: --slurm-partition P "
        "--slurm-gres gpu:1 --slurm-time 1:00:00 --slurm-array-parallelism 4 ...",
    ),
    click.option(
        "--retries",
        type=click.IntRange(0),
        default=2,
        show_default=True,
        help="Slurm: how often a job that ended early is tried again.",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="List the cases with predicted memory and expected time, and measure nothing.",
    ),
)
GATING = _all(
    click.option(
        "--fail-if",
        "conditions",
        multiple=True,
        metavar="'slower>5%'",
        help="Exit with 4 if a model's whole interval lies beyond; or 'faster>N%'. Repeatable.",
    ),
    click.option("--strict", is_flag=True, help="Exit with 3 if a row is flagged."),
    click.option("--verbose", is_flag=True, help="Also tell where the time went."),
)


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="datbench")
def cli() -> None:
    """What attention costs on your device.

    Parameters, MACs, latency and memory of DAT, Swin, PVT and YOLO variants, compared honestly.
    """


@cli.command("list")
@click.argument("pattern", default="*")
@FORMAT
@PLUGIN
def list_(pattern: str, form: str, plugins: tuple[Path, ...]) -> None:
    """List models and blocks that match PATTERN, with published figures.

    Any block plugs into any detector; 'yolov8n+*' lists those of one.
    """
    add_plugins(plugins)
    rows = catalogue.rows(pattern)
    if not rows:
        raise UserError(f"nothing in the zoo matches {pattern!r}; see `datbench list`")
    _print_rows(rows, list(rows[0]), form, lambda: catalogue.show(rows))


@cli.command(cls=Variadic)
@click.argument("models", nargs=-1, required=True, shell_complete=complete_model)
@click.option("--by-module", is_flag=True, help="Count each module instead, as a tree.")
@click.option("--by-op", is_flag=True, help="Count each operator instead.")
@click.option(
    "--depth",
    type=click.IntRange(1),
    help="Levels of the tree; 2 by default, all of them in csv and json.",
)
@click.option("--time-modules", is_flag=True, help="Time each module too, with --by-module.")
@EXECUTION
@WORKLOAD
@OUTPUT
@RESULTS
@RESUME
@_format(*PRINTED)
def profile(
    models: tuple[str, ...],
    by_module: bool,
    by_op: bool,
    depth: int | None,
    time_modules: bool,
    **options: Any,
) -> None:
    """Measure each of MODELS for itself, or count the parts of each.

    --by-module and --by-op count without running the model; they need no device.
    """
    if (depth or time_modules) and not by_module:
        raise UserError("--depth and --time-modules are for --by-module alone")
    if by_module and by_op:
        raise UserError("--by-module and --by-op exclude each other; give one of them")
    rigorous, budget = options.pop("rigorous"), options.pop("budget")
    counts = by_module or by_op
    measured = [name for name in ("runtimes", "fuse", "nms", "end_to_end") if options[name]]
    if counts and measured:
        raise UserError(
            "--runtime, --fuse, --nms and --end-to-end are for measuring; leave them out of a count"
        )
    _settle(options)
    if counts and (options["resume"] or options["form"] not in ("table", "csv", "json")):
        raise UserError("a count has no run to --resume, and is printed as table, csv or json")
    shown = _shown(options)
    if not counts:
        request = make("profile", models, rigorous=rigorous, budget=budget, **options)
        _exit_on_faults(_measure(request, **shown))
        return
    _one(options)
    if rigorous or budget is not None or options["mode"] == "train":
        raise UserError(
            "--rigorous and --budget are for measuring, and so is --mode train; leave them out of "
            "a count"
        )
    for name in ("runtimes", "fuse", "scope", "executor", "gpus", "slurm", "retries"):
        del options[name]
    kept = {name: shown[name] for name in ("outputs", "include_host", "form")}
    _break_down(models, by_op, depth, time_modules, **kept, **options)


@cli.command(cls=Variadic)
@click.option(
    "--models",
    multiple=True,
    required=True,
    metavar="MODEL...",
    shell_complete=complete_model,
    help="Models to compare: `--models dat swin`.",
)
@click.option("--baseline", help="Model that the others are compared with; the first by default.")
@click.option("--quick", is_flag=True, help="One process pair, no verdicts.")
@click.option(
    "--min-effect",
    type=click.FloatRange(0, 50, min_open=True),
    default=1.0,
    show_default=True,
    metavar="PERCENT",
    help="Difference below which two models count as the same.",
)
@GATING
@EXECUTION
@WORKLOAD
@OUTPUT
@RESULTS
@RESUME
@_format(*PRINTED)
def compare(
    *,
    models: tuple[str, ...],
    quick: bool,
    rigorous: bool,
    budget: float | None,
    min_effect: float,
    conditions: tuple[str, ...],
    strict: bool,
    **options: Any,
) -> None:
    """Measure models against each other, interleaved, and say which differences are real."""
    _settle(options)
    if quick and conditions:
        raise UserError("--fail-if needs verdicts, which --quick has not; leave one of them out")
    shown = _shown(options)
    request = make(
        "compare", models, quick=quick, rigorous=rigorous, budget=budget, min_effect=min_effect,
        **options,
    )  # fmt: skip
    _gated(request, conditions, strict, **shown)


@cli.command("run", cls=Variadic)
@click.argument("plan", type=click.Path(path_type=Path))
@GATING
@click.option("--dry-run", is_flag=True, help="List the cases, and measure nothing.")
@OUTPUT
@RESULTS
@RESUME
@_format(*PRINTED)
def run_(plan: Path, conditions: tuple[str, ...], strict: bool, **shown: Any) -> None:
    """Measure what a PLAN file asks for; every run folder holds the plan that made it.

    PLAN is TOML with the options of compare and profile: models, batch_size, dtype, runtime, ...
    """
    from datbench.request import PLAN, read_request

    request = read_request(plan / PLAN if plan.is_dir() else plan)
    _gated(request, conditions, strict, **shown)


def _gated(request: Request, conditions: Sequence[str], strict: bool, **shown: Any) -> None:
    """Measure, and exit as the conditions ask for."""
    from datbench.gate import Gate, failures, unjudged

    if conditions and len(request.models) * max(1, len(request.runtime)) < 2:
        raise UserError("--fail-if needs a comparison; give two models or more")
    gates = [Gate.parse(text) for text in conditions]
    records = _measure(request, **shown)
    reasons = list(failures(records, gates))
    for reason in reasons:
        _complain(reason)
    if reasons:
        sys.exit(GATED)
    _exit_on_faults(records)
    if gates and (open_ := unjudged(records)):
        click.echo(f"Error: too few process pairs to judge {', '.join(open_)}", err=True)
        sys.exit(FAILED)
    if strict and any(record.flags for record in records):
        sys.exit(FLAGGED)


@cli.command()
@click.argument("models", nargs=-1, shell_complete=complete_model)
@click.option(
    "--pairs",
    type=click.IntRange(DEFAULT.looks[0]),
    default=20,
    show_default=True,
    help=f"Process pairs; in multiples of {DEFAULT.looks[0]} none is left out.",
)
@_measuring(ONE)
@RESULTS
def calibrate(models: tuple[str, ...], pairs: int, rigorous: bool, **options: Any) -> None:
    """Compare MODELS with themselves: the noise of this machine, and what it can tell apart.

    A short, a medium and a long one by default, which take five minutes. The results are kept
    under --results, and `compare` tells that of the nearest latency from then on.
    """
    from datbench import calibration, health
    from datbench.reports.txt import plain_table, show

    if rigorous:
        raise UserError("--rigorous is for measuring models; give --pairs here")
    _settle(options)
    models = models or calibration.MODELS
    budget, results = options.pop("budget"), options.pop("results")
    protocol = calibration.protocol(pairs, budget and budget / len(models))
    plans = [
        make_plan([model] * calibration.COPIES, command="calibrate", protocol=protocol, **options)
        for model in models
    ]
    findings = list(health.host(plans[0].cases[0].workload.threads))  # before we load it ourselves
    console, records, short = _stdout(), [], []
    for number, plan in enumerate(plans):
        folder = RunFolder.create(results, "calibrate")
        with _progress() as progress:
            found_records, found, state = calibration.calibrate(plan, folder, progress)
        records += found_records
        if not number:
            table = plain_table()
            for title in ("machine", "found", "what to do"):
                table.add_column(title)
            for finding in [*findings, *health.gpu(state)]:
                table.add_row(finding.what, finding.found, finding.advice)
            console.print(table)
        console.print()
        console.print(show(found_records, console.width))
        if found is not None:
            for line in calibration.told(found):
                console.print(line, markup=False, highlight=False)
        else:
            short.append(f"{plan.baseline} {found_records[0].values.get('pairs') or 0}")
        click.echo(f"Records and samples: {folder.path}", err=True)
        if any(record.interrupted for record in found_records):
            break
    _exit_on_faults(records)
    if short:
        raise UserError(
            f"too few process pairs for a calibration: {', '.join(short)}, expected "
            f"{DEFAULT.looks[0]} or more; give it a longer --budget"
        )


@cli.command()
@click.argument("models", nargs=-1, required=True, shell_complete=complete_model)
@BATCH
@SHAPE
@ARITHMETIC
@MODE
@PLUGIN
@FORMAT
def predict(models: tuple[str, ...], form: str, **options: Any) -> None:
    """Predict the peak memory that each of MODELS will need on a CUDA device.

    Nothing runs and no GPU is needed: tensors without data go through the model.
    """
    from datbench import memory

    _tell(memory.PREDICTED, memory.predictions(models, **options), len(models), form)


@cli.command()
@click.argument("models", nargs=-1, required=True, shell_complete=complete_model)
@click.option(
    "--memory",
    metavar="8GiB",
    help="What torch may take of the device; all that is free on --device.",
)
@click.option("--device", help="Try it there, cuda or cuda:N; without it the answer is predicted.")
@SHAPE
@ARITHMETIC
@OPTIMIZER
@PLUGIN
@FORMAT
def fit(models: tuple[str, ...], form: str, **options: Any) -> None:
    """Find the largest batch of each of MODELS that fits into memory, in inference and training."""
    from datbench import memory

    _tell(memory.FITTED, memory.fits(models, **options), 2 * len(models), form)


@cli.command("export-report")
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=click.Path(path_type=Path))
@OUTPUT
@RESULTS
@click.option(
    "--format",
    "forms",
    multiple=True,
    type=click.Choice(["table", *PRINTED, "txt", "html", "xlsx", "png", "svg"]),
    help="Print it; html, xlsx, png and svg become RUN/report.SUFFIX. Repeatable.",
)
@click.option("--columns", metavar="A,B", help="Columns of the tables, as the CSV names them.")
@click.option("--sort", metavar="A,-B", help="Columns to sort by; with a minus downwards.")
@click.option(
    "--filter",
    "where",
    metavar="EXPRESSION",
    help="Rows to keep: 'batch_size == 1 and macs < 5e9'.",
)
def export_report(
    *,
    runs: tuple[Path, ...],
    outputs: tuple[Path, ...],
    include_host: bool,
    results: Path,
    forms: tuple[str, ...],
    columns: str | None,
    sort: str | None,
    where: str | None,
) -> None:
    """Write reports of one or more RUNs, folders or .json and .jsonl files; by default the latest.

    Without --output and --format: report.csv and report.html in the first folder. Several runs
    become one report, in which machines stay apart.
    """
    from datbench.reports import check_output, gather, tell_of_samples
    from datbench.reports.select import select
    from datbench.store import latest_run

    folders = [_run(run, results) for run in runs] or [latest_run(results)]
    files = [form for form in forms if form in ("html", "xlsx", "png", "svg")]
    if not outputs and not forms:
        files = ["csv", "html"]
    first = folders[0].path
    place = first / "report" if first.is_dir() else first.with_suffix("")
    outputs = (*outputs, *(Path(f"{place}.{suffix}") for suffix in files))
    for output in outputs:
        check_output(output)
    samples = tell_of_samples([*forms, *(output.suffix[1:] for output in outputs)])
    content = gather(folders, samples=samples)
    _tell_damage(folders)
    content = select(content, columns=columns, sort=sort, where=where)
    for form in forms:
        if form not in files:
            _print_content(content, form, include_host)
    _write(content, outputs, include_host)


@cli.command()
@RESULTS
@FORMAT
def runs(results: Path, form: str) -> None:
    """List the runs under --results, and how to go on with those that were cut short."""
    from datbench import history

    rows = history.rows(results)
    _print_rows(rows, history.COLUMNS, form, lambda: history.show(rows))


@cli.command()
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option(
    "--fail-if",
    "conditions",
    multiple=True,
    metavar="'macs>1%'",
    help="Exit with 4 if it holds of B: slower, faster, params, macs or memory. Repeatable.",
)
@RESULTS
@FORMAT
def diff(run_a: Path, run_b: Path, conditions: tuple[str, ...], results: Path, form: str) -> None:
    """Show what changed from RUN_A to RUN_B: models, figures, versions, environment.

    Latencies of two runs are no fair comparison; `datbench compare` is one.
    """
    from datbench import diff as differing
    from datbench.gate import DIRECTIONS, GROWTH, Gate
    from datbench.reports import gather
    from datbench.reports.privacy import without_host

    gates = [Gate.parse(text, (*DIRECTIONS, *GROWTH)) for text in conditions]
    folders = [_run(run, results) for run in (run_a, run_b)]
    sides = [gather([folder], samples=False) for folder in folders]
    # Hosts as in reports that others sent, so that one machine is the same on both sides.
    found = differing.difference(*(without_host(side).records for side in sides))
    _tell_damage(folders)
    rows = [entry.row() for entry in found.changes]
    _print_rows(rows, differing.COLUMNS, form, lambda: differing.show(found))
    if form != "table":
        for line in differing.notes(found):
            _complain(line)
    if not found.changes:
        raise UserError(f"{run_a} and {run_b} have no model under the same workload in common")
    reasons = list(differing.failures(found, gates))
    for reason in reasons:
        _complain(reason)
    if reasons:
        sys.exit(GATED)
    if gates and (open_ := differing.unjudged(found, gates)):
        _complain(f"Error: cannot be judged: {'; '.join(open_)}")
        sys.exit(FAILED)


@cli.command()
@click.argument("pattern", default="*")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE.csv",
    help="Figures to compare with: columns model, img_size, gmacs; bare names may be timm's.",
)
@click.option("--sample", "number", type=click.IntRange(1), help="Check so many, of all families.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample.")
@FORMAT
def verify(pattern: str, against: Path | None, number: int | None, seed: int, form: str) -> None:
    """Compare our multiply-adds with published ones, for the models that match PATTERN.

    Exit status 1 if one of them is off by more than 1 % and by more than its rounding.
    """
    from datbench import verify as verifying

    if against is None:
        claims = verifying.claims_of_the_zoo(pattern)
    else:
        claims = verifying.claims_of_file(against)
        claims = [claim for claim in claims if fnmatch.fnmatchcase(claim.model, pattern)]
        if not claims:
            raise UserError(f"no model in {against} matches {pattern!r}")
    if number is not None:
        claims = verifying.sample(claims, number, seed)
    with _progress() as progress:
        checks, interrupted = _until_interrupted(verifying.verify(claims, progress), len(claims))
    rows = [check.row() for check in checks]
    _print_rows(rows, verifying.COLUMNS, form, lambda: verifying.show(checks))
    if interrupted:
        sys.exit(INTERRUPTED)
    if not all(check.agrees for check in checks):
        sys.exit(FAILED)


@cli.command()
@click.argument("patterns", nargs=-1)
@RUNTIME
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda or cuda:N.")
@BATCH
@SHAPE
@ARITHMETIC
@HALF
@FUSE
@PLUGIN
@FORMAT
def exportability(
    patterns: tuple[str, ...],
    runtimes: tuple[str, ...],
    plugins: tuple[Path, ...],
    form: str,
    **options: Any,
) -> None:
    """Try each model that matches PATTERNS under each runtime; hold its answers against eager's.

    Patterns are names or, quoted, 'dat*', 'yolov8n+*', 'block:*'; without one, the whole zoo.
    Exit status 1 if one is wrong or fails.
    """
    from datbench import exportability as exporting

    _settle(options)
    add_plugins(plugins)
    models = list(dict.fromkeys(m for p in patterns or "*" for m in catalogue.models_of(p)))
    tried = exporting.runtimes_for(options["device"], runtimes)
    cases = exporting.cases_of(models, tried, plugins=plugins, **options)
    with _progress() as progress:
        found, interrupted = _until_interrupted(exporting.survivals(cases, progress), len(cases))
    rows = [entry.row() for entry in found]
    _print_rows(rows, exporting.COLUMNS, form, lambda: exporting.show(found))
    if interrupted:
        sys.exit(INTERRUPTED)
    if any(entry.verdict != exporting.WORKS for entry in found):
        sys.exit(FAILED)


@cli.command()
@click.argument("model", shell_complete=complete_model)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--to",
    "form",
    type=click.Choice(["onnx", "openvino", "torchscript", "pt2"]),
    help="Kind of file; by the suffix of FILE if left out.",
)
@click.option("--opset", type=click.IntRange(1), help="Of ONNX; torch's choice by default.")
@BATCH
@SHAPE
@ARITHMETIC
@HALF
@FUSE
@click.option("--checkpoint", metavar="FILE", help="Weights, as safetensors or a state dict.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random weights.")
@PLUGIN
def export(
    model: str,
    file: Path,
    form: str | None,
    opset: int | None,
    checkpoint: str | None,
    **options: Any,
) -> None:
    """Write MODEL to FILE, its shapes fixed, and check what was written against eager PyTorch.

    FILE is there only if it gives the same answers. OpenVINO's weights go beside it.
    """
    from datbench import exportability as exporting
    from datbench.reports import check_output

    _settle(options)
    runtime = exporting.runtime_of(form, file, opset)
    check_output(file, among=[file.suffix[1:]])
    plan = make_plan(
        [model],
        command="profile",
        device="cpu",
        runtimes=[runtime],
        checkpoints=[checkpoint] if checkpoint else [],
        **options,
    )
    with _progress() as progress:
        progress(f"{model} to {file.name}", 0.0)
        found = exporting.export(plan.cases[0], file)
    if found.verdict != exporting.WORKS:
        raise click.ClickException(f"{model} {found.verdict}: {found.reason}; nothing was written")
    click.echo(
        f"Wrote {file}: as eager within {found.relative:.1e} of the largest magnitude of a channel "
        f"(at most {found.absolute:.1e})"
    )


@cli.command("yolo-yaml")
@click.argument("model", shell_complete=complete_model)
@PLUGIN
def yolo_yaml(model: str, plugins: tuple[Path, ...]) -> None:
    """Write the YAML of a detector, e.g. yolov8n+dat, as ultralytics builds and trains it."""
    add_plugins(plugins)
    with contextlib.redirect_stdout(sys.stderr):  # ultralytics greets on stdout
        text = detector_yaml(model)
    click.echo(text, nl=False)


def _settle(options: dict[str, Any]) -> None:
    """Replace flags that stand for a value: --half, --nms, --end-to-end; read --slurm."""
    half, nms, whole = (options.pop(name, False) for name in ("half", "nms", "end_to_end"))
    dtypes = options["dtype"]
    if half and "bfloat16" in dtypes:
        raise UserError("--half is float16; leave it or --dtype bfloat16 out")
    if nms and whole:
        raise UserError("--end-to-end has --nms in it; give one of them")
    if half:
        options["dtype"] = "float16" if isinstance(dtypes, str) else ("float16",)
    options["scope"] = "nms" if nms else "end-to-end" if whole else "forward"
    if "slurm" in options:
        options["slurm"] = dict(map(_slurm, options["slurm"]))


def _slurm(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f"--slurm {text}: expected KEY=VALUE, e.g. partition=gpu")
    return name, True if value == "true" else value


def _one(options: dict[str, Any]) -> None:
    """Take the one value of options that may have several elsewhere."""
    for name in ("batch_size", "img_size", "input_shape", "dtype", "mode"):
        values = options[name]
        if len(values) > 1:
            option = name.removesuffix("_shape").replace("_", "-")
            told = ", ".join(map(str, values))
            raise UserError(f"--{option} takes one value here; got {told}")
        options[name] = values[0] if values else None


SHOWN = ("outputs", "include_host", "results", "resume", "form", "verbose", "dry_run")


def _shown(options: dict[str, Any]) -> dict[str, Any]:
    """Take what is not measured but done with it out of the options of a command."""
    return {name: options.pop(name) for name in SHOWN if name in options}


def _measure(
    request: Request,
    *,
    outputs: Sequence[Path],
    include_host: bool,
    results: Path,
    resume: Path | None,
    form: str,
    verbose: bool = False,
    dry_run: bool = False,
) -> list[Record]:
    """Run, show and write; a run that Ctrl-C ended exits here."""
    from datbench.executors import EXECUTORS
    from datbench.reports import check_output, gather, tell_of_samples
    from datbench.reports.protocol import counted
    from datbench.reports.txt import account

    for output in outputs:
        check_output(output)
    if dry_run:
        if outputs or resume:
            raise UserError("--dry-run measures nothing; leave --output and --resume out")
        _forecast(request, results, form)
        return []
    execution = Execution(request, results, resume)
    if EXECUTORS[request.executor].elsewhere:
        click.echo(f"Results come into {execution.folder.path}", err=True)
    with _progress() as progress:
        records = execution.run(progress)
    folder = execution.folder
    if jobs := execution.executor.under_way:
        jobs_told = counted(len(jobs), "job")
        if _confirm(f"Not finished: {jobs_told}. Cancel what is left?"):
            execution.executor.cancel()
        else:
            click.echo(f"On the cluster: {jobs_told}; --resume {folder.path} follows", err=True)
    if not execution.complete and not any(record.measurements for record in records):
        click.echo(f"Interrupted; what there is: {folder.path}", err=True)
        sys.exit(INTERRUPTED)
    samples = tell_of_samples([form, *(output.suffix[1:] for output in outputs)])
    content = gather([folder], records=records, samples=samples)
    _tell_damage([folder])
    _print_content(content, form, include_host)
    if verbose and form == "table":
        _stdout().print("", account(records), sep="\n")
    _write(content, outputs, include_host)
    click.echo(f"Records and samples: {folder.path}", err=True)
    if not execution.complete:
        sys.exit(INTERRUPTED)
    return records


def _forecast(request: Request, results: Path, form: str) -> None:
    """List the cases of a request with what they would need."""
    from datbench import forecast
    from datbench.executors import EXECUTORS
    from datbench.sweep import Sweep, cases_of

    if form not in ("table", "csv", "json"):
        raise UserError(f"--dry-run is printed as table, csv or json; got {form}")
    sweep = Sweep(request, elsewhere=EXECUTORS[request.executor].elsewhere)
    with _progress() as progress:
        found, interrupted = _until_interrupted(
            forecast.rows(sweep, results, progress), cases_of(request)
        )
    _print_rows(found, forecast.COLUMNS, form, lambda: forecast.show(found))
    if interrupted:
        sys.exit(INTERRUPTED)


def _confirm(question: str) -> bool:
    """Ask on the terminal; the answer is no where there is none."""
    if not sys.stdin.isatty():
        return False
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        return False


def _exit_on_faults(records: Sequence[Record]) -> None:
    """Exit with 1 if a model failed."""
    failed = [record for record in records if record.error]
    if not all(record.impossible for record in failed):
        sys.exit(FAILED)
    if records and len(failed) == len(records):
        sys.exit(FAILED)  # nothing was possible


def _break_down(
    models: Sequence[str],
    by_op: bool,
    depth: int | None,
    time_modules: bool,
    *,
    outputs: Sequence[Path],
    include_host: bool,
    form: str,
    **options: Any,
) -> None:
    """Count the parts of each model, show and write; exit with 1 if a model failed."""
    from datbench import breakdown
    from datbench.reports import check_output, write_file
    from datbench.reports.privacy import without_home

    for output in outputs:
        check_output(output, among=("csv", "json", "txt"))
    if not time_modules:
        options["device"] = "cpu"  # nothing runs
    plan = make_plan(models, command="profile", **options)
    timed_depth = depth or (breakdown.DEPTH if form == "table" else None)
    with _progress() as progress:
        found, interrupted = _until_interrupted(
            breakdown.break_down(
                plan, depth=timed_depth, time_modules=time_modules, progress=progress
            ),
            len(plan.cases),
        )
    if form == "table":
        for part in found:
            _stdout().print(breakdown.show(part, by_op=by_op, depth=depth))
    else:
        click.echo(breakdown.render(found, form, by_op=by_op, depth=depth), nl=False)
    for output in outputs:
        text = breakdown.render(found, output.suffix[1:], by_op=by_op, depth=depth)
        write_file(text if include_host else without_home(text), output)
        click.echo(f"Wrote {output}", err=True)
    for part in found:
        if part.error and form != "table":
            click.echo(f"Error: {part.case.label} failed: {part.error}", err=True)
    if interrupted:
        sys.exit(INTERRUPTED)
    if any(part.error for part in found):
        sys.exit(FAILED)


def _tell(columns: Sequence[str], rows: Iterator[dict[str, Any]], number: int, form: str) -> None:
    """Show rows as they are found, or all of them as text; exit with 1 if one has an error."""
    from datbench.memory import show

    with _progress() as progress:

        def noted() -> Iterator[dict[str, Any]]:
            progress("starting", 0.0)
            for done, row in enumerate(rows, 1):
                progress(str(row["model"]), done / number)
                yield row

        found, interrupted = _until_interrupted(noted(), number)
    _print_rows(found, columns, form, lambda: show(columns, found))
    if interrupted:
        sys.exit(INTERRUPTED)
    if any(row["error"] for row in found):
        sys.exit(FAILED)


def _print_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    form: str,
    show: Callable[[], RenderableType],
) -> None:
    """Print rows on stdout, as the table that `show` makes or as text for other programs."""
    if form == "table":
        _stdout().print(show())
    else:
        click.echo(as_text(rows, form, columns), nl=False)


def _until_interrupted(results: Iterator[T], number: int) -> tuple[list[T], bool]:
    """Take results as they come; Ctrl-C ends it, and is an error only before the first."""
    found: list[T] = []
    try:
        for result in results:
            found.append(result)
    except KeyboardInterrupt:
        if not found:
            raise click.Abort from None
        click.echo(f"Interrupted after {len(found)} of {number}.", err=True)
        return found, True
    return found, False


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """Show a bar on stderr; nothing where that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda text, done: bar.update(task, description=text, completed=done)


def _print_content(content: Content, form: str, include_host: bool) -> None:
    """Print on stdout: a table for the terminal, or a report in which host and home are hidden."""
    from datbench.reports import render

    if form != "table":
        click.echo(render(_public(content, include_host), form), nl=False)
        return
    from datbench.reports.txt import show

    console = _stdout()
    console.print(show(content.records, console.width, content.columns), crop=False)


def _public(content: Content, include_host: bool) -> Content:
    from datbench.reports.privacy import without_host

    return content if include_host else without_host(content)


def _run(name: Path, results: Path) -> RunFolder | ReportFile:
    """A run folder, by path or by name, or a report that holds records."""
    from datbench.reports import ReportFile
    from datbench.store import RECORDS, SAMPLES, find_run

    if name.name in (RECORDS, SAMPLES):
        name = name.parent
    if name.suffix in (".json", ".jsonl") and name.is_file():
        return ReportFile(name)
    return find_run(name, results)


def _tell_damage(folders: Sequence[RunFolder | ReportFile]) -> None:
    for folder in folders:
        for damage in folder.damage:
            _complain(damage)


def _stdout() -> Console:
    """A console as wide as the terminal, or as plain text is where there is none."""
    from rich.console import Console

    from datbench.reports.txt import WIDTH

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _write(content: Content, outputs: Sequence[Path], include_host: bool) -> None:
    from datbench.reports import write

    if outputs:
        content = _public(content, include_host)
    for output in outputs:
        write(content, output)
        click.echo(f"Wrote {output}", err=True)
