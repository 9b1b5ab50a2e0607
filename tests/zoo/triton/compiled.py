"""Compiles the Triton kernels for GPUs, and says what they need of one; no GPU is needed.

    python compiled.py '[["forward", "bfloat16", 32, 90]]'

prints a line of JSON for each kernel, type, channels of a head and compute capability: registers
of a thread, bytes of shared memory of a block, and bytes that did not fit into registers.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from zoo.blocks import _deformable_triton as kernels

POINTERS = {
    "q": "", "k": "", "v": "", "out": "", "grad": "", "d_q": "", "d_k": "", "d_v": "",
    "table": "fp32", "queries": "fp32", "points": "fp32", "log_sums": "fp32", "means": "fp32",
    "d_table": "fp32", "d_points": "fp32",
}  # fmt: skip
TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compiled(kernel: str, dtype: str, width: int, capability: int) -> dict[str, object]:
    """Compile a kernel and look at what it became."""
    function = getattr(kernels, f"{kernel}_kernel")
    of = getattr(torch, dtype)
    padded = max(16, triton.next_power_of_2(width))
    cut = kernels.tiles(kernel, padded, of.itemsize)
    constants = {
        "WIDTH": width, "PADDED": padded, "QUERIES": cut.queries, "KEYS": cut.keys,
        "PRECISION": kernels.precision(of),
    }  # fmt: skip
    signature, whole = {}, {}
    for i, name in enumerate(inspect.signature(function.fn).parameters):
        if name in constants:
            signature[name] = "constexpr"
        elif name in POINTERS:
            signature[name] = f"*{POINTERS[name] or TYPES[dtype]}"
            whole[i,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
            if name.endswith(("_batch", "_head", "_row")):
                whole[i,] = [["tt.divisibility", 16]]
    built = triton.compile(
        ASTSource(function, signature, constants, whole),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": cut.warps, "num_stages": cut.stages},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [TOOL, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
    return {
        "kernel": kernel, "dtype": dtype, "width": width, "capability": capability,
        "tile": f"{cut.queries}x{cut.keys}", "warps": cut.warps, "registers": usage["REG"],
        "shared": built.metadata.shared, "spilled": usage["STACK"] + usage["LOCAL"],
    }  # fmt: skip


if __name__ == "__main__":
    for asked in json.loads(sys.argv[1]):
        print(json.dumps(compiled(*asked)), flush=True)
