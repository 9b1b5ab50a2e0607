"""Peak memory of a CUDA run without a GPU: the model runs on tensors that have no data.

The step runs in torch's FakeTensorMode on a device that pretends to be CUDA. Each storage that
appears is allocated, and released when it dies, in a model of torch's caching allocator
(`datbench.caching`), which is read the way `datbench.metrics.memory` reads the real one: after a
step that warms up. Added is cuBLAS's workspace, as torch allocates it with the first product.
Copies and buffers inside operators are added where they are known. Not seen are cuDNN's workspaces,
buffers of reductions, and CUDA's own context, some hundred MiB outside of torch's allocator.
docs/memory.md compares it with torch's allocator.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from datbench.caching import CachingAllocator
from datbench.plan import Case
from datbench.training import TrainStep
from zoo.layers import ALIGNED
from zoo.prepared import Prepared

CUDA = torch.device("cuda:0")
WORKSPACE = 8_519_680  # bytes of cuBLAS: torch's default for GPUs before Hopper, 8320 KiB
PRODUCTS = (
    "mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot", "deform_conv2d",
    "_deform_conv2d_backward",
)  # fmt: skip
CONTIGUOUS = {  # operators that copy what is not contiguous, and the places of such arguments
    "native_layer_norm": (0,),
    "native_layer_norm_backward": (0, 1),
    "native_group_norm": (0,),
    "native_group_norm_backward": (0, 1),
    "cudnn_grid_sampler": (0, 1),
    "cudnn_grid_sampler_backward": (0, 1, 2),
}
aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Bytes that a step needs, as torch's allocator would count them.

    Args:
        weights: parameters and buffers.
        before: alive before the step.
        peak_allocated: most alive during the step.
        peak_reserved: most that torch had taken from the device.
    """

    weights: int
    before: int
    peak_allocated: int
    peak_reserved: int


def predict(case: Case, limit: float = math.inf, workspace: int = WORKSPACE) -> Prediction:
    """Predict the memory of a case on a CUDA device.

    Args:
        case: its workload's device does not matter.
        limit: bytes that torch may take from the device.
        workspace: bytes of cuBLAS's workspace.
    Raises:
        OutOfMemory: it needs more than `limit`.
        ZooError: the model cannot be built.
    """
    work = case.workload
    torch.manual_seed(work.seed)
    model = case.build().train(work.mode == "train")
    meter = Meter(CachingAllocator(limit), workspace, work.cudnn_benchmark)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    dtype = getattr(torch, work.dtype)
    weights = torch.float32 if work.amp else dtype
    layout = torch.channels_last if work.channels_last else torch.contiguous_format

    fakes: dict[int, FakeTensor] = {}

    def pretend(tensor: Any) -> Any:
        """A tensor without data on the device, counted from now on; the same for the same."""
        if not isinstance(tensor, torch.Tensor):
            return tensor
        if id(tensor) in fakes:
            return fakes[id(tensor)]
        to = weights if tensor.is_floating_point() else tensor.dtype
        shape = torch.empty_like(tensor, dtype=to, device="meta")
        if layout is torch.channels_last and tensor.ndim == 4:
            shape = shape.contiguous(memory_format=layout)
        fake = fakes[id(tensor)] = FakeTensor(mode, shape, CUDA)
        meter.see(fake)
        return fake

    original = [*model.parameters(), *model.buffers()]  # keeps their ids from being used again
    with _replaced_parameters():
        model._apply(pretend)
    batch = torch.empty(work.batch_size, *work.input_shape, device="meta")
    inputs = pretend(batch)
    with mode, meter, FusedAttention(), _pretending():
        step = _step(case, model, inputs, dtype, pretend)
        fakes.clear()
        step()
        step()
        before = meter.allocator.allocated
        meter.allocator.reset_peaks()
        step()
    held = [*model.parameters(), *model.buffers()]
    del original, batch
    allocator = meter.allocator
    return Prediction(
        sum(t.nbytes for t in held), before, allocator.peak_allocated, allocator.peak_reserved
    )


class Meter(TorchDispatchMode):
    """Allocates each storage on the device as it appears, and releases it as it dies.

    Args:
        allocator: counts.
        workspace: bytes that the first product allocates for good; the first one of the backward
            again, since it has a thread and a cuBLAS handle of its own.
        benchmark: whether torch lets cuDNN try its algorithms for each convolution that is new;
            it empties the allocator's cache after that.
    """

    def __init__(self, allocator: CachingAllocator, workspace: int, benchmark: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocator = allocator
        self._workspace = workspace
        self._benchmark = benchmark
        self._tried: set[str] = set()
        self._handles: set[bool] = set()
        self._seen: Any = WeakIdKeyDictionary(ref_type=weakref.ref)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator and look at what it returns."""
        convolution = Convolution.of(func, args)
        inside = [self.allocator.allocate(size) for size in _inside(func, args, convolution)]
        answer = ANSWERS.get(func)
        out = NotImplemented if answer is None else answer(*args, **kwargs or {})
        if out is NotImplemented:
            out = func(*args, **kwargs or {})
        for tensor in tree_leaves(out):
            self.see(tensor)
        if func.overloadpacket.__name__ in PRODUCTS:
            self._first_product()
        for block in inside:
            self.allocator.release(block)
        if self._benchmark and convolution is not None and convolution.is_new(self._tried):
            self.allocator.empty_cache()
        return out

    def _first_product(self) -> None:
        """Allocate cuBLAS's workspace if there is none."""
        if torch.is_grad_enabled() not in self._handles:
            self._handles.add(torch.is_grad_enabled())
            self.allocator.allocate(self._workspace)

    def see(self, tensor: Any) -> None:
        """Count the storage of a tensor on the device."""
        if not isinstance(tensor, FakeTensor) or tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        if storage in self._seen or not storage.nbytes():
            return
        block = self.allocator.allocate(storage.nbytes())
        self._seen[storage] = True
        weakref.finalize(storage, self.allocator.release, block).atexit = False


class FusedAttention(TorchFunctionMode):
    """Attention by the kernels that torch takes on a GPU; without one it would spell it out."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace calls of scaled_dot_product_attention, and nothing else."""
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs or {})
        return func(*args, **kwargs or {})


def _attention(  # noqa: PLR0917 - as the function that it stands for
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> torch.Tensor:
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        q, k, v = (t.to(dtype) for t in (q, k, v))
        attn_mask = attn_mask if attn_mask is None else attn_mask.to(dtype)
    width, half, scale = q.shape[-1], q.dtype != torch.float32, options.get("scale")
    if width % (8 if half else 4) or options.get("enable_gqa") or q.ndim != 4:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            spelled_out = torch._C._nn.scaled_dot_product_attention
            return spelled_out(q, k, v, attn_mask, dropout_p, is_causal, **options)
    if half and attn_mask is None and width <= 256:
        out = aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, scale=scale)
        return out[0]
    if attn_mask is not None:
        *rows, across = attn_mask.stride()
        if across != 1 or any(stride % ALIGNED for stride in rows):  # torch copies such a mask
            length = attn_mask.shape[-1]
            padded = torch.nn.functional.pad(attn_mask, (0, ALIGNED - length % ALIGNED))
            attn_mask = padded[..., :length]
        attn_mask = attn_mask.expand(*q.shape[:2], q.shape[2], k.shape[2])
    trained = q.requires_grad or k.requires_grad or v.requires_grad
    out = aten._scaled_dot_product_efficient_attention(
        q, k, v, attn_mask, torch.is_grad_enabled() and trained, dropout_p, is_causal, scale=scale
    )
    return out[0]


def _inside(func: Any, args: Sequence[Any], convolution: Convolution | None) -> Iterator[int]:
    """Bytes of what an operator has for itself: most often copies that its kernels can read."""
    name = func.overloadpacket.__name__
    for place in CONTIGUOUS.get(name, ()):
        if not args[place].is_contiguous():
            yield args[place].nbytes
    if name == "deform_conv2d":
        images, weights, moves = args[:3]
        yield from [weights.shape[0] * images.itemsize * _places(moves)] * 2  # sums, and a copy
        yield _columns(images, weights, moves)
    elif name == "_deform_conv2d_backward":
        yield _columns(*args[1:4])
    if convolution is not None:
        for tensor in convolution.tensors:
            if not tensor.is_contiguous(memory_format=convolution.layout):
                yield tensor.nbytes


def _places(moves: torch.Tensor) -> int:
    return len(moves) * moves.shape[2] * moves.shape[3]


def _columns(images: torch.Tensor, weights: torch.Tensor, moves: torch.Tensor) -> int:
    """Bytes of the sampled taps that torchvision's deformable convolution makes a matrix of.

    It takes as many images at once as divide the batch, 32 at most.
    """
    at_once = max(n for n in range(1, 33) if len(images) % n == 0)
    taps = images.shape[1] * weights.shape[2] * weights.shape[3]
    return taps * _places(moves) // len(images) * at_once * images.itemsize


class Convolution:
    """How torch runs a convolution of images, or the backward of one.

    Args:
        func: the operator, for the key.
        tensors: what it reads: the gradient of the output if it is a backward, images, weights.
        options: stride, padding, dilation, transposed, output_padding and groups.
    """

    def __init__(
        self, func: Any, tensors: Sequence[torch.Tensor], options: Mapping[str, Any]
    ) -> None:
        images, weights = tensors[-2:]
        kernels = torch._C._select_conv_backend(images, weights, bias=None, **options)
        if kernels.name == "SlowDilated2d":
            # torch asks the GPU's library whether it can do it, and there is none
            kernels = type(kernels).Cudnn  # type: ignore[attr-defined]
        self.tensors = tensors
        self.layout = torch._C._conv_determine_backend_memory_format(images, weights, kernels)
        cudnn = kernels.name in {"Cudnn", "CudnnTranspose"}
        if len(images) == 1 and options["groups"] == images.shape[1] > 1:
            # torch's own kernels, which it takes on a GPU alone
            self.layout, cudnn = torch.contiguous_format, False
        shapes = [(t.shape, t.dtype) for t in tensors]
        self._key = repr((func, shapes, self.layout, options)) if cudnn else None

    @classmethod
    def of(cls, func: Any, args: Sequence[Any]) -> Convolution | None:
        """Read it off the call of an operator, if it is one."""
        if func is aten.convolution.default:
            tensors, rest = args[:2], args[3:9]
        elif func is aten.convolution_backward.default:
            tensors, rest = args[:3], args[4:10]
        else:
            return None
        if tensors[-2].ndim != 4:
            return None
        names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
        return cls(func, tensors, dict(zip(names, rest, strict=True)))

    def is_new(self, known: set[str]) -> bool:
        """Whether cuDNN runs it and none like it is known yet; it is from now on."""
        if self._key is None or self._key in known:
            return False
        known.add(self._key)
        return True


def _sampled(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return images.new_empty((*images.shape[:2], *grid.shape[1:3]))


def _sampled_back(images: torch.Tensor, grid: torch.Tensor, _: torch.Tensor) -> Any:
    return torch.empty_like(images), torch.empty_like(grid)


def _number(tensor: torch.Tensor) -> float | int:
    return 1.0 if tensor.is_floating_point() else 1


def _nonzero(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.new_empty((1, tensor.ndim), dtype=torch.int64)


def _unique(tensor: torch.Tensor, *_: Any, **__: Any) -> Any:
    counts = tensor.new_empty(1, dtype=torch.int64)
    return tensor.new_empty(1), torch.empty_like(tensor, dtype=torch.int64), counts


def _masked(tensor: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> Any:
    if not any(map(_is_mask, indices)):
        return NotImplemented
    taken = sum(index.ndim if _is_mask(index) else 1 for index in indices)
    return tensor.new_empty((1, *tensor.shape[taken:]))


# Answers of operators that torch cannot run without data: numbers are one, and one was found.
ANSWERS: dict[Any, Callable[..., Any]] = {
    aten.cudnn_grid_sampler.default: _sampled,
    aten.cudnn_grid_sampler_backward.default: _sampled_back,
    aten._local_scalar_dense.default: _number,
    aten.nonzero.default: _nonzero,
    aten._unique2.default: _unique,
    aten.index.Tensor: _masked,
}


def _is_mask(index: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _step(
    case: Case,
    model: torch.nn.Module,
    inputs: torch.Tensor,
    dtype: torch.dtype,
    pretend: Callable[[Any], Any],
) -> Callable[[], Any]:
    work = case.workload

    def autocast() -> contextlib.AbstractContextManager[None]:
        # casts of weights are kept until the end of the forward, but not in inference_mode
        kept = work.mode == "train"
        return _autocast(dtype, kept) if work.amp else contextlib.nullcontext()

    if work.mode == "inference":

        def infer() -> None:
            with torch.no_grad(), autocast():
                model(inputs)

        return infer
    return TrainStep(case, model, inputs, autocast, lambda: None, backward=backward, to=pretend)


@contextlib.contextmanager
def _pretending() -> Iterator[None]:
    """Let modules keep what they prepare, and go back through the parts of a graph, as usual."""
    usual = torch.autograd.backward
    torch.autograd.backward = lambda tensor, gradient, *_, **__: backward(tensor, gradient)
    Prepared.pretending = True
    try:
        yield
    finally:
        torch.autograd.backward = usual
        Prepared.pretending = False


@torch.no_grad()
def backward(loss: torch.Tensor, gradient: torch.Tensor | None = None) -> None:
    """Go back through the graph of a loss, node by node, as autograd's engine orders them.

    The engine itself asks the CUDA driver for its devices. Nodes run when all gradients of their
    outputs have arrived, the latest of the forward first, and are forgotten, with what they had
    saved, once they have run.
    """
    root: Any = loss.grad_fn
    assert root is not None  # noqa: S101 - a loss of parameters has one
    waiting: collections.Counter[Any] = collections.Counter()
    todo: list[Any] = [root]
    known: set[Any] = {root}
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in known:
                    known.add(node)
                    todo.append(node)
    del known, todo
    arrived: dict[Any, dict[int, torch.Tensor]] = {
        root: {0: torch.ones_like(loss) if gradient is None else gradient}
    }
    ready: list[Any] = [root]
    del root
    if gradient is None:
        loss.detach_()  # would hold the whole graph
    while ready:
        node = ready.pop(max(range(len(ready)), key=lambda i: _priority(ready[i])))
        gradients = arrived.pop(node)
        outputs = len(node._input_metadata)
        run = node if callable(node) else node.apply  # functions that are written in Python
        found = run(*(gradients.get(i) for i in range(outputs)))
        del gradients
        found = found if isinstance(found, tuple) else (found,)
        following = node.next_functions
        node = run = later = passed = None
        for (later, place), passed in zip(following, found, strict=False):
            if later is None:
                continue
            if passed is not None:
                expected = later._input_metadata[place]
                slots, fitted = arrived.setdefault(later, {}), _fitted(passed, expected)
                slots[place] = slots[place] + fitted if place in slots else fitted
                del fitted
            waiting[later] -= 1
            if not waiting[later]:
                del waiting[later]
                if later in arrived:
                    ready.append(later)
        del found, following
        later = passed = None


def _fitted(gradient: torch.Tensor, expected: Any) -> torch.Tensor:
    """A gradient in the shape and type that a node expects."""
    if gradient.shape != expected.shape:
        gradient = gradient.sum_to_size(expected.shape)
    return gradient if gradient.dtype == expected.dtype else gradient.to(expected.dtype)


def _priority(node: Any) -> int:
    """Gradients of parameters at once, then what the forward did last."""
    return 2**63 if "AccumulateGrad" in node.name() else node._sequence_nr()


@contextlib.contextmanager
def _replaced_parameters() -> Iterator[None]:
    """Let modules take new parameters where they are converted, not new data of the old ones."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


@contextlib.contextmanager
def _autocast(dtype: torch.dtype, kept: bool) -> Iterator[None]:
    """As `torch.autocast("cuda", dtype)`, which switches itself off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.set_autocast_cache_enabled(kept)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.set_autocast_cache_enabled(cached)
