"""OpenVINO on the processor, on a file that it converted from ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from datbench.runtimes import Exported, Program, Running, first_call, runtime
from datbench.runtimes._export import explained, onnx_program

PRECISIONS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@runtime(
    "openvino",
    order=4,
    device="cpu",
    needs=("onnx", "onnxscript", "openvino"),
    extra="openvino",
    form="openvino",
    suffix=".xml",
)
class OpenVino(Exported):
    """OpenVINO's plug-in for processors, for latency, on as many threads as torch has.

    Left to itself it computes float32 networks in bfloat16 where the processor can; here it
    computes in the type of the workload.

    Args:
        opset: of the ONNX file in between; None leaves it to torch.
    """

    def __init__(self, *, opset: int | None = None) -> None:
        self.opset = opset

    def export(self, program: Program, file: Path) -> Mapping[str, Any]:
        """Write an XML file, and the weights beside it under the same name with .bin."""
        import openvino as ov

        found = onnx_program(program, self.opset)
        between = file.with_suffix(".between.onnx")
        try:
            with explained("OpenVINO"):
                found.save(between)
                model = ov.Core().read_model(between)
                ov.save_model(model, file, compress_to_fp16=program.work.dtype == "float16")
        finally:
            between.unlink(missing_ok=True)
        return {
            "exporter": f"torch.onnx {torch.__version__}, dynamo, then OpenVINO",
            "opset": found.model.opset_imports[""],
            "onnx": version("onnx"),
        }

    def load(self, program: Program, file: Path) -> Running:
        """Compile the network, and let it read the input where it lies."""
        import openvino as ov

        work = program.work
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": work.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": PRECISIONS[work.dtype],
        }
        with explained("OpenVINO"):
            compiled = ov.Core().compile_model(file, "CPU", settings)
            request = compiled.create_infer_request()
            array = program.inputs.detach().numpy()  # shares its memory
            request.set_input_tensor(ov.Tensor(array, shared_memory=True))

            def step() -> Any:
                request.infer()
                return request

            first = first_call(step, program.device)

        def outputs(done: Any) -> list[torch.Tensor]:
            return [torch.from_numpy(tensor.data.copy()) for tensor in done.output_tensors]

        facts = {
            "providers": list(compiled.get_property("EXECUTION_DEVICES")),
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
            "openvino": ov.__version__,
        }
        return Running(step, outputs, facts, [first], allocates=False, own_threads=True)
