"""From what a user asks for to a list of cases, everything checked before anything is built."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datbench.device import check_device, resolve_device, usable_cores
from datbench.errors import UserError
from datbench.inputs import check_image
from datbench.records import SCOPES, Calibration, Workload
from datbench.runtimes import check_runtime, parse_runtime
from datbench.schedule import DEFAULT, Protocol
from zoo.names import Named, parse_name
from zoo.plugins import load_plugin
from zoo.registry import ZooError
from zoo.spec import BlockSpec, ModelSpec

if TYPE_CHECKING:
    from torch import nn

DTYPES = ("float32", "float16", "bfloat16")
MODES, OPTIMIZERS = ("inference", "train"), ("adamw", "sgd")
# Packages whose version may change a figure.
PACKAGES = ("datbench", "torch", "torchvision", "timm", "fvcore", "ultralytics", "numpy")


@dataclasses.dataclass(frozen=True)
class Case:
    """One model under one workload.

    Args:
        label: how the row is called; a model given twice gets `#2`.
        name: what the zoo builds, with the options in brackets.
        workload: what it is given to do.
        checkpoint: file of its weights; random weights without one.
        plugins: files that add blocks and models to the zoo before the name is read.
    """

    label: str
    name: str
    workload: Workload
    checkpoint: str | None = None
    plugins: tuple[str, ...] = ()

    @functools.cached_property
    def named(self) -> Named:
        """The parsed name; a user's file is read once, so that its digest is that of the plan."""
        return parse_name(self.name)

    @property
    def task(self) -> str:
        """What the model does: "classify", "detect", or "block" for a block alone."""
        spec = self.named.spec
        return spec.task if isinstance(spec, ModelSpec) else "block"

    @property
    def returns_more(self) -> bool:
        """Whether its first tensor alone is its answer: the others are what that is made from."""
        return self.named.takes_blocks

    @property
    def modules(self) -> list[str]:
        """Modules that building the model imports, those of users left out."""
        specs = (self.named.spec, self.named.block)
        users = {Path(plugin).stem for plugin in self.plugins}
        return [spec.module for spec in specs if spec is not None and spec.module not in users]

    @property
    def published(self) -> dict[str, Any]:
        """Published figures, where the model and the input are the published ones."""
        spec, (_, h, w) = self.named.spec, self.workload.input_shape
        if not isinstance(spec, ModelSpec) or self.named.block or not h == w == spec.img_size:
            return {}
        if not spec.published_source or set(self.named.options) - {"img_size", "drop_path_rate"}:
            return {}
        return {
            "published_params": spec.published_params,
            "published_macs": spec.published_macs,
            "published_top1": spec.published_top1,
            "published_source": spec.published_source,
        }

    @functools.cached_property
    def key(self) -> str:
        """Content key: the same for the same model, workload and versions.

        A user's file, checkpoint or image counts by its digest; what a file imports does not.
        """
        content = {
            "name": self.name,
            "source": self.named.source,  # of a user's file, with its digest
            "checkpoint": _digest(self.checkpoint),
            "image": _digest(self.workload.image),
            "workload": self.workload.facts(),
            "versions": {**versions(), **parse_runtime(self.workload.runtime).versions()},
        }
        text = json.dumps(content, sort_keys=True)
        return "k" + hashlib.sha256(text.encode()).hexdigest()[:15]  # never reads as a number

    def build(self) -> nn.Module:
        """Build the model or the block."""
        import zoo

        add_plugins(self.plugins)
        named, (channels, h, w) = self.named, self.workload.input_shape
        if isinstance(named.spec, BlockSpec):
            return zoo.create_block(self.name, channels)
        return zoo.create_model(self.name, checkpoint=self.checkpoint, input_size=(h, w))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Cases and how to measure them.

    Args:
        cases: in the order of the rows.
        protocol: how often.
        baseline: label of the case that the others are compared with; None for no comparison.
        command: names the run folder.
        shell: the whole command that measures this, as a shell reads it.
        calibrations: of this machine; that of the nearest latency stands in a record.
        impossible: labels of cases that cannot be, and why; they are rows without figures.
    """

    cases: tuple[Case, ...]
    protocol: Protocol
    baseline: str | None
    command: str
    shell: str = ""
    calibrations: Sequence[Calibration] = ()
    impossible: Mapping[str, str] = dataclasses.field(default_factory=dict)


def make_plan(
    models: Sequence[str],
    *,
    command: str = "compare",
    protocol: Protocol = DEFAULT,
    baseline: str | None = None,
    device: str = "auto",
    batch_size: int = 1,
    img_size: int | None = None,
    input_shape: str | None = None,
    dtype: str = "float32",
    amp: bool = False,
    channels_last: bool = False,
    tf32: bool = False,
    cudnn_benchmark: bool = True,
    cold_cache: bool = False,
    mode: str = "inference",
    optimizer: str | None = None,
    runtimes: Sequence[str] = (),
    fuse: bool = False,
    scope: str = "forward",
    threads: int | None = None,
    seed: int = 0,
    image: str = "photo",
    checkpoints: Sequence[str] = (),
    plugins: Sequence[str | os.PathLike[str]] = (),
    lenient: bool = False,
    elsewhere: bool = False,
) -> Plan:
    """Resolve every name and option; nothing is built and torch is not imported.

    Args:
        models: names as the zoo reads them.
        command: "compare" and "calibrate" compare with a baseline, "profile" does not.
        protocol: how often to measure.
        baseline: one of the models; the first by default.
        device: "auto", "cpu", "cuda" or "cuda:N".
        batch_size: inputs in a step.
        img_size: side in pixels; each model's own by default.
        input_shape: "CxHxW" instead; blocks alone need it.
        dtype: "float32", "float16" or "bfloat16".
        amp: autocast to `dtype`; to the device's usual half type where `dtype` is float32.
        channels_last: memory format of weights and input.
        tf32: let CUDA round the factors of float32 products to 10 bits.
        cudnn_benchmark: let cuDNN try its algorithms and take the fastest.
        cold_cache: overwrite a GPU's L2 cache before each timed iteration.
        mode: "inference", or "train" for forward, loss, backward and optimiser.
        optimizer: "adamw" (the default) or "sgd" of a training step.
        runtimes: of `datbench.runtimes`, options in brackets; "eager" by default. With several,
            each model is a case under each of them.
        fuse: fold batch norms into the convolutions before them.
        scope: "forward", "nms" or "end-to-end", see `datbench.deployment`.
        threads: of one operator on the CPU; all usable cores by default.
        seed: of weights, noise and order.
        image: "photo", "noise" or a file.
        checkpoints: "FILE", or "MODEL=FILE" where there are several models.
        plugins: files with blocks and models of the user's, see `zoo.load_plugin`.
        lenient: keep cases that cannot be, each with its reason, instead of raising.
        elsewhere: the plan is for another machine: whether its device is there is not asked, and
            threads are left to it.
    Raises:
        UserError, ZooError: something cannot work; the message says what would.
    """
    if isinstance(models, str):
        models = [models]
    if not models:
        raise UserError("no model given; name at least one, e.g. dat")
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    impossible: dict[str, str] = {}

    def check(labels: Iterable[str], looked_at: Callable[..., None], *arguments: Any) -> None:
        try:
            looked_at(*arguments)
        except (UserError, ZooError) as error:
            if not lenient:
                raise
            for label in labels:
                impossible.setdefault(label, str(error))

    for what, number in (("batch size", batch_size), ("threads", threads), ("img size", img_size)):
        if number is not None and number < 1:
            raise UserError(f"{what} is {number}; expected 1 or more")
    _check_waiting()
    check_image(image)
    files = add_plugins(plugins)
    names = [parse_name(model) for model in models]
    shapes = [_shape(named, img_size, input_shape) for named in names]
    where = _named_device(device) if elsewhere else resolve_device(device)
    if where == "cpu" and (cold_cache or tf32):
        option = "--cold-cache" if cold_cache else "--tf32"
        raise UserError(f"{option} is for CUDA devices; the device is {where}")
    if amp and dtype == "float32":
        dtype = "bfloat16" if where == "cpu" else "float16"
    chosen = [parse_runtime(text) for text in runtimes or ("eager",)]
    if scope not in SCOPES:
        raise UserError(f"scope {scope!r} is not one of {', '.join(SCOPES)}")
    bare = _labels([str(named) for named in names])
    weights = _checkpoints(checkpoints, models, bare)
    cells = [*itertools.product(chosen, zip(bare, names, shapes, strict=True))]
    several = len(chosen) > 1
    labels = [f"{label} ({how})" if several else label for how, (label, _, _) in cells]
    if len(set(labels)) < len(labels):
        raise UserError(f"a runtime is given twice: {', '.join(map(str, chosen))}")
    image = image if image in ("photo", "noise") else str(Path(image).absolute())
    cases = tuple(
        Case(
            label,
            str(named),
            Workload(
                device=where,
                input_shape=shape,
                batch_size=batch_size,
                dtype=dtype,
                amp=amp,
                channels_last=channels_last,
                tf32=tf32,
                cudnn_benchmark=cudnn_benchmark,
                cold_cache=cold_cache,
                mode=mode,
                optimizer=(optimizer or OPTIMIZERS[0]) if mode == "train" else None,
                runtime=str(how),
                fuse=fuse,
                scope=scope,
                image=image,
                threads=threads or (0 if elsewhere else usable_cores()),
                seed=seed,
            ),
            weights.get(own),
            files,
        )
        for label, (how, (own, named, shape)) in zip(labels, cells, strict=True)
    )
    check(labels, _check_mode, mode, optimizer, dtype, amp)
    for case, (how, (_, named, _)) in zip(cases, cells, strict=True):
        check([case.label], _check_size, named, case.workload, img_size)
        check([case.label], _check_scope, named, scope, mode, image)
        check([case.label], check_runtime, how, case.workload)
    compares = command != "profile"
    possible = [label for label in labels if label not in impossible]
    against = _baseline(baseline, [*models] * len(chosen), labels) if compares else None
    if against in impossible and baseline is None:
        against = next(iter(possible), None)
    words = shell(
        command,
        models,
        protocol,
        baseline=baseline,
        device=where,
        batch_size=batch_size,
        img_size=img_size,
        input=input_shape,
        image=image,
        dtype=dtype,
        amp=amp,
        channels_last=channels_last,
        mode=mode,
        optimizer=optimizer,
        runtime=runtimes,
        fuse=fuse,
        nms=scope == "nms",
        end_to_end=scope == "end-to-end",
        tf32=tf32,
        no_cudnn_benchmark=not cudnn_benchmark,
        cold_cache=cold_cache,
        threads=cases[0].workload.threads or None,
        seed=seed,
        checkpoint=checkpoints,
        plugin=plugins,
    )
    return Plan(cases, protocol, against, command, words, impossible=impossible)


def shell(command: str, models: Sequence[str], protocol: Protocol, **options: Any) -> str:
    """Write a plan as a command; options that say nothing new are left out, the device is not."""
    words = ["datbench", command]
    words += ["--models", *models] if command == "compare" else models[:1]
    words += models[1:] if command == "profile" else []
    if command == "calibrate":
        words += ["--pairs", str(protocol.looks[-1])]
    usual = {"batch_size": 1, "seed": 0, "image": "photo", "mode": "inference", "dtype": "float32"}
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]  # noqa: PLW2901
        if value is True:
            words.append(option)
        elif isinstance(value, list | tuple):
            words += [word for part in value for word in (option, str(part))]
        elif value is not None and value is not False and value != usual.get(name):
            words += [option, str(value)]
    if protocol.name in ("quick", "rigorous") and (command, protocol.name) != ("profile", "quick"):
        words.append(f"--{protocol.name}")
    if protocol.budget_s is not None:
        words += ["--budget", f"{protocol.budget_s:g}"]
    if command == "compare" and protocol.min_effect != DEFAULT.min_effect:
        words += ["--min-effect", f"{100 * protocol.min_effect:g}"]
    return shlex.join(words)


def _check_waiting() -> None:
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active":
        raise UserError(
            "OMP_WAIT_POLICY is ACTIVE: threads of waiting models would take the cores of the one "
            "that is timed; unset it"
        )


def _check_mode(mode: str, optimizer: str | None, dtype: str, amp: bool) -> None:
    if mode not in MODES:
        raise UserError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    if optimizer is not None and optimizer not in OPTIMIZERS:
        raise UserError(f"optimizer {optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
    if optimizer is not None and mode != "train":
        raise UserError("--optimizer is for training; add --mode train")
    if mode == "train" and dtype == "float16" and not amp:
        raise UserError("float16 weights do not train; give --amp --dtype float16, or bfloat16")


def _named_device(name: str) -> str:
    """The device that a name means on a machine that has it."""
    check_device(name)
    return "cuda:0" if name == "cuda" else name


def _check_scope(named: Named, scope: str, mode: str, image: str) -> None:
    if scope == "forward":
        return
    option = f"--{scope}"
    if mode != "inference":
        raise UserError(f"{option} is for inference; leave --mode {mode} out")
    if scope == "end-to-end" and image == "noise":
        raise UserError("--end-to-end begins with a photograph; leave --image noise out")
    if not named.takes_blocks and (
        scope == "nms" or isinstance(named.spec, BlockSpec) or named.spec.task == "detect"
    ):
        can = "detectors of ultralytics" + " and classifiers" * (scope == "end-to-end")
        raise UserError(f"{option} is for {can}; {named} is none")


def _check_size(named: Named, work: Workload, img_size: int | None) -> None:
    """Refuse an input that the model cannot take."""
    own = named.options.get("img_size")
    if img_size is not None and own is not None and own != img_size:
        raise UserError(f"{named} has its own img_size; leave --img-size {img_size} out")
    channels, h, w = work.input_shape
    if isinstance(named.spec, ModelSpec) and named.spec.channels not in (None, channels):
        raise UserError(f"{named} takes images, 3xHEIGHTxWIDTH; got {channels}x{h}x{w}")
    named.check_input(h, w)


def add_plugins(plugins: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Add files of the user's to the zoo of this process.

    Returns:
        Each of them once, as an absolute path.
    Raises:
        UserError, ZooError: one of them cannot be added.
    """
    files = tuple(dict.fromkeys(str(Path(plugin).resolve()) for plugin in plugins))
    for file, other in itertools.combinations(files, 2):
        if Path(file).name == Path(other).name:
            raise UserError(f"plugins {file} and {other} have one name; rename one of them")
    for file in files:
        load_plugin(file)
    return files


@functools.cache
def _digest(file: str | None) -> str | None:
    """Digest of a file; a name that is none stays what it is."""
    if file is None or not Path(file).is_file():
        return file
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that may change a figure."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _shape(named: Named, img_size: int | None, text: str | None) -> tuple[int, int, int]:
    if text is not None and img_size is not None:
        raise UserError("--input and --img-size both set the size; give one of them")
    if text is not None:
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text.lower())
        if match is None or not all(int(n) for n in match.groups()):
            raise UserError(f"input {text!r} is not CHANNELSxHEIGHTxWIDTH, e.g. 256x20x20")
        channels, h, w = map(int, match.groups())
    elif isinstance(named.spec, BlockSpec):
        raise UserError(f"{named} needs the feature map that it stands on: --input 256x20x20")
    else:
        channels, h, w = 3, *_sides(named, img_size)
    return channels, h, w


def _sides(named: Named, img_size: int | None) -> tuple[int, int]:
    assert isinstance(named.spec, ModelSpec)  # noqa: S101 - blocks have no size of their own
    size = img_size or named.options.get("img_size") or named.spec.img_size
    match (size, size) if isinstance(size, int) else size:
        case (int(h), int(w)):
            return h, w
    raise UserError(f"{named}: img_size is a side in pixels or (height, width); got {size!r}")


def _labels(names: Sequence[str]) -> list[str]:
    seen: collections.Counter[str] = collections.Counter()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return labels


def _find(model: str, models: Sequence[str], labels: Sequence[str], what: str) -> str:
    """Label of the model meant by a label, a name as typed, or another form of it."""
    if model in labels:
        return model
    if model in models:
        return labels[list(models).index(model)]
    name = str(parse_name(model))
    found = next((label for label in labels if f"{label} ".startswith(f"{name} ")), None)
    if found is None:
        raise UserError(f"{what} {model} is not among the models: {', '.join(labels)}")
    return found


def _baseline(baseline: str | None, models: Sequence[str], labels: Sequence[str]) -> str:
    return labels[0] if baseline is None else _find(baseline, models, labels, "baseline")


def _checkpoints(
    given: Sequence[str], models: Sequence[str], labels: Sequence[str]
) -> Mapping[str, str]:
    found: dict[str, Any] = {}
    for text in given:
        model, equals, file = text.rpartition("=")
        if not equals and len(labels) > 1:
            raise UserError(f"checkpoint {text}: which model? write --checkpoint MODEL={text}")
        label = _find(model, models, labels, "checkpoint's model") if equals else labels[0]
        path = Path(file)
        if not path.is_file():
            raise UserError(f"checkpoint {file} is not a file")
        if label.startswith("block:"):
            raise UserError(f"{label} is a block; checkpoints are for whole models")
        found[label] = str(path.resolve())
    return found
