"""Builds the simulated CUDA runtime for the installed torch: `python tests/simcuda/build.py DIR`.

One library, `libsimcuda.so`, defines every CUDA symbol that this torch refers to. Beside it stands
an empty shell for each NVIDIA library that torch is linked with or opens: it has that library's
name and version nodes and refers to `libsimcuda.so`. A process that has loaded the shells before
torch takes them for the real ones, whatever search paths torch's libraries carry.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("cuda.c", "libraries.c")
OPENED = ("libcuda.so.1", "libnvidia-ml.so.1")  # by torch and by datbench, while they run
# Prefix of a library's symbols, and its status for what it does not support.
STATUS = {
    "cublas": 15, "cudnn": 3000, "cusparse": 10, "cusolver": 9, "cufft": 16, "curand": 201,
    "nccl": 5, "nvrtc": 8, "nvml": 3, "nvshmem": 1, "cupti": 0, "cuFile": 5001,
    "__cuda": 801, "cuda": 801, "cu": 801,
}  # fmt: skip
HARMLESS = re.compile(r"Destroy|Unload|Unregister|Deregister|Callback|Set[A-Z]|^cupti|^nvshmem")
SHIM = """
#define __host__
#define __device__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDACB
"""


class CannotBuild(Exception):
    """What is missing for the build."""


def build(target: Path) -> list[Path]:
    """Build into a folder.

    Args:
        target: folder, which is created.
    Returns:
        The libraries to load before torch, in that order.
    Raises:
        CannotBuild: a tool, a header or a CUDA build of torch is not there.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise CannotBuild("torch is not installed")
    torch_lib = Path(spec.origin).parent / "lib"
    if not (torch_lib / "libtorch_cuda.so").exists():
        raise CannotBuild("this torch is built without CUDA")
    packages = Path(spec.origin).parents[1]
    headers = sorted(packages.glob("nvidia/*/include"))
    if not any((folder / "cuda_runtime_api.h").exists() for folder in headers):
        raise CannotBuild("the headers of the CUDA runtime are not installed beside torch")

    (target / "include" / "crt").mkdir(parents=True, exist_ok=True)
    for name in ("host_defines.h", "host_config.h"):
        (target / "include" / "crt" / name).write_text(SHIM)
    includes = [f"-I{folder}" for folder in (target / "include", HERE, *headers)]
    warnings = [
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-parameter",
        "-Wno-deprecated-declarations",
    ]
    objects = []
    for source in SOURCES:
        objects.append(target / f"{source}.o")
        options = ["-O1", "-g", "-fPIC", "-std=gnu11", *warnings, *includes]
        call("gcc", *options, "-c", HERE / source, "-o", objects[-1])

    libraries = [lib for lib in sorted(torch_lib.glob("lib*.so")) if "cpu" not in lib.name]
    defined = symbols("-g", "--defined-only", *objects)
    wanted = symbols("-D", "--undefined-only", *libraries)
    driver = next(folder / "cuda.h" for folder in headers if (folder / "cuda.h").exists())
    wanted |= set(re.findall(r"^CUresult CUDAAPI (\w+)\(", driver.read_text(), re.MULTILINE))
    looked_up = (torch_lib / "libc10_cuda.so").read_bytes()  # by name, while it runs
    wanted |= {name.decode() for name in re.findall(rb"\bnvml[A-Z]\w+", looked_up)}
    stubs = target / "stubs.c"
    stubs.write_text(
        stubs_of(sorted(name for name in wanted - defined if status(name) is not None))
    )
    call("gcc", "-O1", "-fPIC", "-c", stubs, "-o", target / "stubs.o")
    whole = target / "libsimcuda.so"
    call("gcc", "-shared", f"-Wl,-soname,{whole.name}", *objects, target / "stubs.o", "-o", whole,
         "-ldl", "-lpthread")  # fmt: skip
    return [whole, *shells(target, whole, libraries)]


def shells(target: Path, whole: Path, libraries: Iterable[Path]) -> list[Path]:
    """Build an empty library for each NVIDIA library that torch's libraries need."""
    needed: dict[str, set[str]] = {name: set() for name in OPENED}
    for library in libraries:
        for name in re.findall(
            r"NEEDED.*\[(lib(?:cu|nv|nccl)[^\]]*)\]", output("readelf", "-d", library)
        ):
            needed.setdefault(name, set())
        versions = output("readelf", "-V", library)
        for name, nodes in re.findall(
            r"Version: 1 +File: (\S+) +Cnt: \d+\n((?:.*Name: .*\n)*)", versions
        ):
            if name in needed:
                needed[name] |= set(re.findall(r"Name: (\S+)", nodes))
    built = []
    for name, nodes in sorted(needed.items()):
        script = target / f"{name}.map"
        script.write_text("".join(f"{node} {{ }};\n" for node in sorted(nodes)))
        built.append(target / name)
        versioned = [f"-Wl,--version-script,{script}"] if nodes else []
        call("gcc", "-shared", f"-Wl,-soname,{name}", *versioned, "-Wl,--no-as-needed", "-x", "c",
             "/dev/null", "-x", "none", whole, "-o", built[-1])  # fmt: skip
    return built


def stubs_of(names: Iterable[str]) -> str:
    """Write a function for each symbol that is not simulated.

    What creates something gives a handle, what ends or sets something succeeds, and all else fails
    with its library's own status: an unset result that passes for success does harm far away.
    """
    lines = [
        "#include <stdio.h>",
        "#include <stdlib.h>",
        "static void tell(const char *name) {",
        '  if (getenv("SIMCUDA_TRACE")) fprintf(stderr, "simcuda: %s is not simulated\\n", name);',
        "}",
    ]
    for name in names:
        if name.endswith("ErrorString"):
            body = f'const char *{name}(int e) {{ (void)e; return "not simulated"; }}'
        elif HARMLESS.search(name):
            body = f"int {name}(void) {{ return 0; }}"
        elif "Create" in name and not name.startswith("cu" + "da"):
            body = f"int {name}(void **made) {{ *made = malloc(8); return 0; }}"
        else:
            body = f'int {name}(void) {{ tell("{name}"); return {status(name)}; }}'
        lines.append(body)
    return "\n".join(lines) + "\n"


def status(name: str) -> int | None:
    """Return the status for "not supported" of a symbol's library; None for other libraries'."""
    if not re.match(r"(__cuda|cuda|cu|nccl|nv)[A-Za-z]", name):
        return None
    return next((code for prefix, code in STATUS.items() if name.startswith(prefix)), None)


def symbols(*arguments: object) -> set[str]:
    """List symbols with nm, without their versions."""
    lines = output("nm", *arguments).splitlines()
    return {line.split()[-1].partition("@")[0] for line in lines if line and not line.endswith(":")}


def output(*command: object) -> str:
    """Run a tool and return what it prints."""
    try:
        return subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError:
        raise CannotBuild(f"{command[0]} is not installed") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{' '.join(error.cmd)}\n{error.stderr}") from None


def call(*command: object) -> None:
    """Run a tool."""
    output(*command)


if __name__ == "__main__":
    print(*build(Path(sys.argv[1])), sep=":")
