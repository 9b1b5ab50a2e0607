"""ONNX Runtime, on a file that torch.onnx wrote by way of torch.export.

Input and output are bound to memory of the device, so that nothing is copied on the way. On a GPU
it works on the stream on which torch's events take the time. The CPU gets as many threads as torch
has.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from datbench.runtimes import Exported, ExportFailed, Program, Running, first_call, runtime
from datbench.runtimes._export import explained, onnx_program

ELEMENT_TYPES = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}  # as ONNX counts them
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


@runtime(
    "onnxruntime",
    order=3,
    choices={"level": ("all", "extended", "basic", "disable")},
    needs=("onnx", "onnxscript", "onnxruntime"),
    extra="onnx",
    for_cuda="onnxruntime-gpu",
    form="onnx",
    suffix=".onnx",
)
class OnnxRuntime(Exported):
    """ONNX Runtime on the provider of the device.

    Args:
        opset: of the file; None leaves it to torch.
        level: of its graph optimisation, "disable", "basic", "extended" or "all".
    """

    def __init__(self, *, opset: int | None = None, level: str = "all") -> None:
        self.opset, self.level = opset, level

    def export(self, program: Program, file: Path) -> Mapping[str, Any]:
        """Write an ONNX file."""
        found = onnx_program(program, self.opset)
        with explained("saving the ONNX file"):
            found.save(file)
        return {
            "exporter": f"torch.onnx {torch.__version__}, dynamo",
            "opset": found.model.opset_imports[""],
            "onnx": version("onnx"),
        }

    def load(self, program: Program, file: Path) -> Running:
        """Make a session, and bind input and outputs."""
        import onnxruntime as ort

        kind = program.work.device.partition(":")[0]
        wanted = PROVIDERS[kind]
        if wanted not in ort.get_available_providers():
            raise ExportFailed(
                f"this onnxruntime has no {wanted}; pip uninstall onnxruntime, then pip install "
                "onnxruntime-gpu"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = program.work.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what is wrong is raised
        levels = ort.GraphOptimizationLevel.__members__
        options.graph_optimization_level = levels[LEVELS[self.level]]
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        settings: dict[str, Any] = {}
        if kind == "cuda":
            settings["device_id"] = program.inputs.device.index or 0
            settings["user_compute_stream"] = str(program.device.stream())
            settings["use_tf32"] = int(program.work.tf32)
        with explained("ONNX Runtime"):
            session = ort.InferenceSession(file, options, providers=[(wanted, settings)])
            binding = session.io_binding()
            (given,) = session.get_inputs()
            inputs = program.inputs
            place = {"device_type": kind, "device_id": inputs.device.index or 0}
            binding.bind_input(
                given.name,
                **place,
                element_type=ELEMENT_TYPES[inputs.dtype],
                shape=tuple(inputs.shape),
                buffer_ptr=inputs.data_ptr(),
            )
            for output in session.get_outputs():
                binding.bind_output(output.name, **place)

            def step() -> Any:
                session.run_with_iobinding(binding)
                return binding

            first = first_call(step, program.device)

        def outputs(bound: Any) -> list[torch.Tensor]:
            return [torch.from_numpy(array) for array in bound.copy_outputs_to_cpu()]

        facts = {
            "providers": _assigned(session, wanted),
            "level": self.level,
            "threads": options.intra_op_num_threads,
            "onnxruntime": ort.__version__,
        }
        return Running(step, outputs, facts, [first], allocates=False, own_threads=kind == "cpu")


def _assigned(session: Any, wanted: str) -> dict[str, int]:
    """Count the nodes that each provider runs; what was asked for where it does not tell."""
    found: collections.Counter[str] = collections.Counter()
    for part in getattr(session, "get_provider_graph_assignment_info", list)():
        found[part.ep_name] += len(part.get_nodes())
    return dict(found) or {wanted: 0}
