"""Runtimes: what is refused, that answers are eager's, what is told of graphs and files."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from datbench.deployment import DeployedStep
from datbench.errors import UserError
from datbench.metrics.latency import time_slot
from datbench.metrics.memory import memory
from datbench.plan import make_plan
from datbench.records import Workload
from datbench.runtimes import RUNTIMES, ExportFailed, Running, check_runtime, parse_runtime
from datbench.trial import build_trial, shake
from zoo import ZooError

pytestmark = pytest.mark.filterwarnings("ignore")  # exporters and ultralytics warn

EXPORTED = [name for name, spec in RUNTIMES.items() if spec.form]
MINE = """
import torch
from torch import nn

class Branch(nn.Module):
    def forward(self, x):
        if x.mean() > 0:
            return x * 2
        return x

class Eigen(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x @ x.mT).sum() + x

class Growing(nn.Module):
    calls = 0
    def forward(self, x):
        self.calls += 1
        return x * self.calls

def net(kind="Branch"):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), globals()[kind]()))
"""


def case_of(model="block:dat", runtime="eager", **options):
    shape = {"input_shape": "32x12x12"} if model.startswith("block:") else {"img_size": 64}
    plan = make_plan([model], device="cpu", runtimes=[runtime], **{**shape, **options})
    return plan.cases[0]


def needs(runtime):
    spec = parse_runtime(runtime).spec
    if missing := spec.missing():
        pytest.skip(missing)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return lambda kind: f"{path}:net[kind={kind}]"


# ---- what is asked for ----------------------------------------------------------------------


def test_runtimes_are_listed_without_torch():
    code = "import sys, datbench.runtimes as r; print(*r.RUNTIMES, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = "compile cudagraph eager onnxruntime openvino pt2 torchscript"
    assert done.stdout.split() == [*names.split(), "False"]


def test_each_model_is_a_case_under_each_runtime():
    plan = make_plan(["dat", "swin"], device="cpu", runtimes=["eager", "compile[dynamic=True]"])
    assert [(case.label, case.workload.runtime) for case in plan.cases] == [
        ("dat_tiny (eager)", "eager"),
        ("swin_tiny (eager)", "eager"),
        ("dat_tiny (compile[dynamic=True])", "compile[dynamic=True]"),
        ("swin_tiny (compile[dynamic=True])", "compile[dynamic=True]"),
    ]
    assert plan.baseline == "dat_tiny (eager)"
    assert len({case.key for case in plan.cases}) == 4
    assert "--runtime eager --runtime 'compile[dynamic=True]'" in plan.shell


@pytest.mark.parametrize(
    ("given", "found"),
    [("swin", "swin_tiny (eager)"), ("swin_tiny", "swin_tiny (eager)"),
     ("swin_tiny (pt2)", "swin_tiny (pt2)")],
)  # fmt: skip
def test_the_baseline_is_a_model_or_a_row(given, found):
    options = {"device": "cpu", "runtimes": ["eager", "pt2"]}
    assert make_plan(["dat", "swin"], baseline=given, **options).baseline == found


def test_weights_are_those_of_a_model_under_every_runtime(tmp_path):
    file = tmp_path / "weights.pt"
    file.touch()
    options = {"device": "cpu", "runtimes": ["eager", "pt2"], "checkpoints": [f"swin={file}"]}
    plan = make_plan(["dat", "swin"], **options)
    assert [case.checkpoint for case in plan.cases] == [None, str(file), None, str(file)]


def test_one_runtime_leaves_the_label_alone():
    assert case_of(runtime="pt2").label == "block:dat"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"runtimes": ["tensorrt"]}, "no runtime named 'tensorrt'"),
     ({"runtimes": ["compile[moed=default]"]}, "no option 'moed'; did you mean mode"),
     ({"runtimes": ["pt2[x=1]"]}, "pt2 takes no options; got x"),
     ({"runtimes": ["compile[x"]}, "cannot read runtime"),
     ({"runtimes": ["cudagraph"]}, "needs --device cuda; the device is cpu"),
     ({"runtimes": ["pt2"], "amp": True}, "leave --amp out"),
     ({"runtimes": ["pt2"], "channels_last": True}, "leave --channels-last out"),
     ({"runtimes": ["compile"], "mode": "train"}, "training runs with --runtime eager"),
     ({"runtimes": ["pt2", "pt2"]}, "given twice"),
     ({"scope": "nms"}, "--nms is for detectors of ultralytics; block:dat is none"),
     ({"scope": "end-to-end"}, "and classifiers; block:dat is none"),
     ({"scope": "all"}, "scope 'all' is not one of")],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_built(options, message):
    with pytest.raises((UserError, ZooError), match=message):
        make_plan(["block:dat"], device="cpu", input_shape="32x12x12", **options)


def test_noise_is_no_photograph():
    with pytest.raises(UserError, match="leave --image noise out"):
        make_plan(["dat"], device="cpu", image="noise", scope="end-to-end")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(runtime, monkeypatch):
    find = importlib.util.find_spec
    hidden = ("onnx", "onnxscript", "onnxruntime", "openvino")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name in hidden else find(name)
    )
    extra = RUNTIMES[runtime].extra
    with pytest.raises(UserError, match=rf"pip install 'datbench\[{extra}\]'") as error:
        case_of(runtime=runtime)
    assert "\n" not in str(error.value)


def test_an_onnxruntime_without_cuda_is_told_before_anything_is_built(monkeypatch):
    needs("onnxruntime")
    chosen = parse_runtime("onnxruntime")
    work = Workload(device="cuda:0", input_shape=(3, 64, 64))
    homes = {"onnxruntime": ["onnxruntime"]}
    monkeypatch.setattr("datbench.runtimes._homes", lambda: homes)
    with pytest.raises(UserError, match="then pip install onnxruntime-gpu; or give --device cpu"):
        check_runtime(chosen, work)
    homes["onnxruntime"] = ["onnxruntime-gpu"]
    check_runtime(chosen, work)


@pytest.mark.parametrize(
    ("runtime", "message"),
    [("compile[mode=fast]", "mode='fast'; expected one of default"),
     ("compile[backend=tvvm]", "backend='tvvm'; expected one of"),
     ("onnxruntime[level=most]", "level='most'; expected one of all")],
)  # fmt: skip
def test_a_value_that_an_option_cannot_have_is_told(runtime, message):
    with pytest.raises(UserError, match=message):
        parse_runtime(runtime).make()


def test_a_mistyped_value_costs_no_worker():
    with pytest.raises(UserError, match="expected one of default, reduce_overhead"):
        make_plan(["dat"], device="cpu", runtimes=["compile[mode=fast]"])


# ---- answers --------------------------------------------------------------------------------


TABLE = "block:dat[position=table,table_size=(12,12)]"


@pytest.mark.slow(but=["block:dat", TABLE, "block:dlka"])
@pytest.mark.parametrize("model", ["block:dat", TABLE, "block:dlka", "pvt_v2_b0", "yolov8n+ema"])
@pytest.mark.parametrize("runtime", [*EXPORTED, "compile[backend=aot_eager]"])
def test_a_runtime_gives_eagers_answers(model, runtime, tmp_path):
    needs(runtime)
    trial = build_trial(case_of(model, runtime), tmp_path, shaken=True)
    assert trial.parity.right
    assert trial.parity.relative < 1e-3
    measured = {m.name: m.value for m in trial.measurements}
    assert measured["parity_rel"] == trial.parity.relative
    assert measured["prepare_s"] > 0
    assert measured["first_call_ms"] > 0


@pytest.mark.parametrize("runtime", [*EXPORTED, "compile[backend=eager]"])
def test_a_step_reads_the_input_anew(runtime, tmp_path):
    needs(runtime)
    trial = build_trial(case_of("block:ema", runtime), tmp_path)
    trial.inputs.mul_(0.25)
    found = parse_runtime(runtime).make()  # only for its kind
    assert found is not None
    expected = trial.model(trial.inputs)
    running = _outputs(trial, runtime)
    torch.testing.assert_close(running, expected.detach(), rtol=1e-3, atol=1e-4)


def _outputs(trial, runtime):
    """The first output of a step, from what each runtime returns."""
    out = trial.step()
    if runtime.startswith("onnxruntime"):
        return torch.from_numpy(out.copy_outputs_to_cpu()[0])
    if runtime.startswith("openvino"):
        return torch.from_numpy(out.output_tensors[0].data.copy())
    return out if torch.is_tensor(out) else out[0]


@pytest.mark.parametrize("runtime", EXPORTED)
def test_processes_of_a_run_share_the_file(runtime, tmp_path):
    needs(runtime)
    case = case_of("block:ema", runtime)
    first, second = (build_trial(case, tmp_path) for _ in range(2))
    names = [{m.name for m in trial.measurements} for trial in (first, second)]
    assert names[0] - names[1] == {"prepare_s"}
    assert "load_s" in names[1]
    assert second.parity.right


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_runtime_has_as_many_threads_as_torch_and_tells_what_ran(runtime, tmp_path):
    needs(runtime)
    trial = build_trial(case_of("block:ema", runtime, threads=1), tmp_path)
    assert trial.facts["threads"] == 1
    assert next(iter(trial.facts["providers"])) in ("CPUExecutionProvider", "CPU")
    assert trial.facts["opset"] >= 18
    assert trial.own_threads


def test_the_opset_is_the_one_asked_for(tmp_path):
    needs("onnxruntime")
    trial = build_trial(case_of("block:ema", "onnxruntime[opset=19]"), tmp_path)
    assert trial.facts["opset"] == 19


def test_memory_that_torch_does_not_see_is_not_told(tmp_path):
    needs("onnxruntime")
    trial = build_trial(case_of("block:ema", "onnxruntime"), tmp_path)
    found = {m.name for m in memory(trial)}
    assert "rss_peak_mib" in found
    assert not {name for name in found if "allocated" in name}


def test_a_slot_of_a_runtime_with_threads_of_its_own_takes_one_reference(tmp_path):
    needs("onnxruntime")
    slot = time_slot(build_trial(case_of("block:ema", "onnxruntime"), tmp_path), 3)
    assert slot.before.reference_ms == slot.after.reference_ms > 0
    assert len(slot.latency_ms) == 3


# ---- what stops an export -------------------------------------------------------------------


def test_a_failing_export_names_the_operator_and_the_module(mine, tmp_path):
    needs("onnxruntime")
    with pytest.raises(ExportFailed) as error:
        build_trial(case_of(mine("Eigen"), "onnxruntime"), tmp_path)
    assert "operator _linalg_eigh.default, in 1.1 (Eigen)" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("runtime", ["onnxruntime", "pt2", "compile[backend=eager,fullgraph=True]"])
def test_a_branch_on_data_is_found_with_its_line(runtime, mine, tmp_path):
    needs(runtime)
    with pytest.raises(ExportFailed, match=r"mine\.py"):
        build_trial(case_of(mine("Branch"), runtime), tmp_path)


def test_graph_breaks_are_counted_and_placed(mine, tmp_path):
    trial = build_trial(case_of(mine("Branch"), "compile[backend=eager]"), tmp_path)
    (found,) = [m for m in trial.measurements if m.name == "graph_breaks"]
    assert found.value == 1
    assert "Data-dependent branching" in found.warnings[0]
    assert "forward, mine.py:7" in found.warnings[0]
    assert trial.facts["graphs"] == 2
    assert trial.parity.right


def test_recompiles_are_counted_and_named(mine, tmp_path):
    trial = build_trial(case_of(mine("Growing"), "compile[backend=eager]"), tmp_path)
    (found,) = [m for m in trial.measurements if m.name == "recompiles"]
    assert found.value > 0
    assert "calls" in found.warnings[0]
    assert not trial.parity.right  # it returns something else each time


@pytest.mark.parametrize("model", ["block:dat", TABLE, "block:hat", "block:window[window=4]"])
def test_the_zoo_is_one_graph_that_is_compiled_once(model, tmp_path):
    trial = build_trial(case_of(model, "compile[backend=eager]"), tmp_path)
    found = {m.name: m.value for m in trial.measurements}
    assert (found["graph_breaks"], found["recompiles"], trial.facts["graphs"]) == (0, 0, 1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_inductor_compiles_and_tells_how_long_it_took(tmp_path):
    trial = build_trial(case_of("block:ema", "compile"), tmp_path)
    found = {m.name: m.value for m in trial.measurements}
    assert trial.parity.right
    assert 0 < found["prepare_s"] < found["first_call_ms"] / 1000
    assert trial.facts["backend"] == "inductor"
    assert any(next(tmp_path.glob("*.inductor")).iterdir())  # of this model alone
    again = build_trial(case_of("block:ema", "compile"), tmp_path)  # from the cache
    assert again.parity.right


# ---- around the network ---------------------------------------------------------------------


def test_a_whole_step_has_parts_that_make_up_its_time():
    trial = build_trial(case_of("yolov8n", scope="end-to-end"))
    slot = time_slot(trial, 3)
    assert list(slot.parts_ms) == ["preprocess", "forward", "postprocess"]
    for i, whole in enumerate(slot.latency_ms):
        assert 0 < sum(times[i] for times in slot.parts_ms.values()) <= whole
    (boxes,) = [m for m in trial.measurements if m.name == "boxes_img"]
    assert boxes.value == 0
    assert boxes.warnings[0].startswith("no_boxes: ")


def test_suppression_alone_leaves_preprocessing_out():
    trial = build_trial(case_of("yolov8n", scope="nms"))
    assert list(time_slot(trial, 2).parts_ms) == ["forward", "postprocess"]


def test_a_photograph_becomes_classes():
    trial = build_trial(case_of("pvt_v2_b0", scope="end-to-end", batch_size=2))
    found = trial.step()
    assert [len(classes) for classes in found] == [5, 5]
    before = trial.inputs.clone()
    trial.inputs.zero_()
    trial.step()
    assert torch.equal(trial.inputs, before)  # each step makes it anew


def test_boxes_are_suppressed_and_scaled_to_the_photograph():
    case = make_plan(["yolov8n"], device="cpu", img_size=640, scope="end-to-end").cases[0]
    predictions = torch.zeros(1, 84, 3)
    predictions[0, :4] = torch.tensor([[320.0, 320.0, 200.0, 100.0]] * 3).T
    predictions[0, 0, 1] = 325.0  # overlaps the first
    predictions[0, 4 + 5] = torch.tensor([0.9, 0.8, 0.1])  # the third scores too little
    running = Running(lambda: predictions, lambda out: [out])
    step = DeployedStep(case, torch.zeros(1, 3, 640, 640), running, lambda: 0)
    (boxes,) = step()
    assert boxes.shape == (1, 6)
    # bus.jpg is 810 x 1080: letterboxed by 640 / 1080, with 80 grey columns on each side.
    corners = torch.tensor([(220 - 80) * 1080 / 640, 270 * 1080 / 640, 340 * 1080 / 640])
    torch.testing.assert_close(boxes[0, :3], corners, atol=1.0, rtol=0)
    assert boxes[0, 5] == 5
    assert step.measurements()[0].value == 1


def test_shaking_moves_what_is_all_alike_and_nothing_else():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    nn.init.zeros_(model[0].bias)
    before = {name: p.clone() for name, p in model.named_parameters()}
    shake(model, 0)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"0.bias", "1.weight", "1.bias"}


def test_norms_are_folded_before_a_model_is_measured():
    plain, fused = (build_trial(case_of("yolov8n", fuse=fuse)) for fuse in (False, True))
    assert fused.facts["fused"] == 57
    sizes = [sum(p.numel() for p in trial.model.parameters()) for trial in (plain, fused)]
    assert sizes[1] < sizes[0]
    assert fused.case.workload.execution == "eager-fused"
