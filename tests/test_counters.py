"""Each operator by hand in both counters, on meta tensors and with data; parts and doubts."""

from __future__ import annotations

import dataclasses
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.flop_counter import register_flop_formula
from torchvision.ops import DeformConv2d, deform_conv2d, roi_align

import zoo
from datbench import counters
from datbench.counters import built_from, copies_of, count, rules
from datbench.plan import make_plan


class Calls(nn.Module):
    """A function as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def counted(function, *shape, meta=True):
    """Count a function or a module, on meta tensors or with data."""
    net = function if isinstance(function, nn.Module) else Calls(function)
    x = torch.randn(shape)
    build = copies_of(net.eval())
    return count(build if meta else lambda _: _needing_data(build("cpu")), x)


def _needing_data(net):
    """Make a network look at its input, so that meta tensors cannot do."""

    def look(_, inputs):
        assert math.isfinite(inputs[0].detach().sum().item())

    net.register_forward_pre_hook(look)
    return net


def heads(x):
    """(b, n, 16) to (b, 4, n, 4)."""
    return x.unflatten(-1, (4, 4)).transpose(1, 2)


class Deformed(nn.Module):
    def __init__(self):
        super().__init__()
        self.offset, self.conv = nn.Conv2d(4, 18, 3, padding=1), DeformConv2d(4, 6, 3, padding=1)

    def forward(self, x):
        return self.conv(x, self.offset(x))


class Hands(nn.Module):
    """A class token that goes through a layer of its own."""

    def __init__(self):
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.zeros(1, 1, 4)), nn.Linear(4, 5)

    def forward(self, x):
        return self.layer(x).sum(1, keepdim=True) + self.layer(self.token.expand(len(x), -1, -1))


class Holds(nn.Module):
    """A function of the input and of constants, which are buffers."""

    def __init__(self, function, *shapes):
        super().__init__()
        self.function, self.number = function, len(shapes)
        for i, shape in enumerate(shapes):
            self.register_buffer(f"c{i}", torch.randn(shape))

    def forward(self, x):
        return self.function(x, *(getattr(self, f"c{i}") for i in range(self.number)))


def fused(x):
    return F.scaled_dot_product_attention(heads(x), heads(x)[..., ::2, :], heads(x)[..., ::2, :])


def grouped(x):
    kv = heads(x)[:, :2]
    return F.scaled_dot_product_attention(heads(x), kv, kv, enable_gqa=True)


def flash_of_the_cpu(x):
    q = heads(x)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)[0]


def flexible(x):
    return flex_attention(heads(x), heads(x), heads(x), score_mod=lambda s, *_: s * 2)


def causal(x):
    return F.scaled_dot_product_attention(heads(x), heads(x), heads(x), is_causal=True)


def narrow(x):
    """Values of half the channels."""
    return F.scaled_dot_product_attention(heads(x), heads(x), heads(x)[..., :2])


def compiled(x):
    return COMPILED(x)


COMPILED = torch.compile(lambda x: x @ x.mT, fullgraph=True)
ATTENTION = 2 * 10 * 10 * 16  # ten tokens of 16 channels
# name: (module or function, shape of its input, multiply-adds by hand)
OPERATORS = {
    "fused attention, half the keys": (fused, (1, 10, 16), ATTENTION // 2),
    "fused attention, grouped": (grouped, (1, 10, 16), ATTENTION),
    "fused attention, causal counts whole": (causal, (1, 10, 16), ATTENTION),
    "fused attention, values of another width": (narrow, (1, 10, 16), ATTENTION * 3 // 4),
    "fused attention, one query for a batch": (
        Holds(F.scaled_dot_product_attention, (7, 4, 5), (7, 4, 5)),
        (1, 3, 5),
        7 * 3 * 4 * 10,
    ),
    "fused attention of the CPU": (flash_of_the_cpu, (1, 10, 16), ATTENTION),
    "flex attention": (flexible, (1, 10, 16), ATTENTION),
    "flex attention, arguments by position": (
        lambda x: flex_attention(heads(x), heads(x), heads(x), None, None, None, False, True)[0],
        (1, 10, 16),
        ATTENTION,
    ),
    "flex attention, compiled": (
        Holds(torch.compile(flex_attention), (1, 4, 6, 4), (1, 4, 6, 4)),
        (1, 4, 10, 4),
        2 * 10 * 6 * 16,
    ),
    "convolution": (nn.Conv2d(4, 6, 3, stride=2), (1, 4, 7, 9), 3 * 4 * 6 * 36),
    "convolution, one number for both axes": (
        lambda x: F.conv2d(x, x.new_zeros(6, 4, 3, 3), stride=(2,), padding=[1]),
        (1, 4, 7, 9),
        4 * 5 * 6 * 36,
    ),
    "a parameter handed to a module": (Hands(), (1, 3, 4), 4 * 20),
    "convolution, grouped": (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 5, 6), 3 * 4 * 6 * 18),
    "convolution, padding same": (
        nn.Conv2d(4, 6, 3, padding="same"),
        (1, 4, 5, 6),
        5 * 6 * 6 * 36,
    ),
    "convolution, one axis": (nn.Conv1d(4, 6, 3), (1, 4, 7), 5 * 6 * 12),
    "convolution, three axes": (nn.Conv3d(2, 3, 2), (1, 2, 3, 4, 5), 2 * 3 * 4 * 3 * 16),
    "convolution, transposed": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
        (1, 4, 5, 6),
        5 * 6 * 6 * 36,
    ),
    "convolution, no batch": (
        lambda x: F.conv2d(x[0], x.new_zeros(6, 4, 3, 3)),
        (1, 4, 5, 6),
        3 * 4 * 6 * 36,
    ),
    "deformable convolution": (Deformed(), (1, 4, 6, 10), 60 * 36 * (18 + 6)),
    "linear": (nn.Linear(4, 5), (1, 3, 7, 4), 21 * 20),
    "matmul, axes broadcast": (Holds(lambda x, a: x @ a, (7, 5, 2)), (1, 3, 5), 7 * 3 * 5 * 2),
    "matmul, first axes broadcast": (
        Holds(lambda x, a: a @ x[0], (3, 4)),
        (1, 7, 4, 5),
        7 * 3 * 4 * 5,
    ),
    "matmul with a vector": (Holds(torch.matmul, (5,)), (1, 3, 5), 15),
    "mv": (Holds(lambda x, a: x[0].mv(a), (5,)), (1, 3, 5), 15),
    "dot": (lambda x: x[0].dot(x[0]), (1, 5), 5),
    "addmv": (Holds(lambda x, a: torch.addmv(x[0, :, 0], x[0], a), (5,)), (1, 3, 5), 15),
    "baddbmm": (
        lambda x: torch.baddbmm(x.new_zeros(1, 1, 1), x, x.mT),
        (4, 6, 10),
        6 * 10 * 6,  # of one of four
    ),
    "addbmm": (Holds(lambda x, b: torch.addbmm(b, x, x.mT), (6, 6)), (1, 6, 10), 360),
    "inner": (Holds(torch.inner, (4, 5)), (1, 3, 5), 60),
    "tensordot": (Holds(lambda x, a: torch.tensordot(x, a, 2), (4, 5, 6)), (1, 4, 5), 120),
    "baddbmm in place": (
        Holds(lambda x, b: b.clone().baddbmm_(x, x.mT), (1, 6, 6)),
        (1, 6, 10),
        360,
    ),
    "addbmm in place": (Holds(lambda x, b: b.clone().addbmm_(x, x.mT), (6, 6)), (1, 6, 10), 360),
    "addmm in place": (Holds(lambda x, b: b.clone().addmm_(x[0], x[0].T), (6, 6)), (1, 6, 10), 360),
    "addmv in place": (Holds(lambda x, b: b.clone().addmv_(x[0], b), (6,)), (1, 6, 6), 36),
    "addr": (Holds(lambda x, b: torch.addr(b, x[0], x[0]), (6, 6)), (1, 6), 36),
    "conv_tbc": (
        Holds(lambda x, w, b: torch.conv_tbc(x[0], w, b), (2, 5, 3), (3,)),
        (1, 7, 4, 5),
        6 * 4 * 3 * 10,
    ),
    "linear, one output": (Holds(F.linear, (4,)), (1, 3, 4), 12),
    "vecdot": (lambda x: torch.linalg.vecdot(x, x), (1, 3, 5), 15),
    "vecdot, broadcast": (
        lambda x: torch.linalg.vecdot(x[:, :, None], x[:, None]),
        (1, 3, 5),
        45,
    ),
    "vecdot along another axis": (lambda x: torch.linalg.vecdot(x, x, dim=1), (1, 3, 5), 15),
    "bilinear": (Holds(lambda x, w: F.bilinear(x, x[..., :3], w), (5, 4, 3)), (1, 7, 4), 7 * 60),
    "cdist": (Holds(torch.cdist, (1, 6, 5)), (1, 3, 5), 90),
    "cdist, broadcast": (Holds(torch.cdist, (7, 6, 5)), (1, 3, 5), 630),
    "lstm, both ways, two layers": (
        nn.LSTM(4, 5, 2, bidirectional=True, batch_first=True),
        (1, 7, 4),
        7 * 2 * (20 * (4 + 5) + 20 * (10 + 5)),
    ),
    "gru": (nn.GRU(4, 5, batch_first=True), (1, 7, 4), 7 * 15 * 9),
    "rnn": (nn.RNN(4, 5, batch_first=True), (1, 7, 4), 7 * 5 * 9),
    "einsum": (Holds(lambda x, a: torch.einsum("bij,jk->bik", x, a), (5, 6)), (1, 3, 5), 90),
    "einsum, no arrow, an ellipsis": (
        Holds(lambda x, a: torch.einsum("...ij, ...kj -> ...ik", x, a), (2, 4, 5)),
        (1, 2, 3, 5),
        2 * 3 * 4 * 5,
    ),
    "einsum, implicit ellipsis, broadcast": (
        Holds(lambda x, a: torch.einsum("...ij,...jk", x, a), (1, 2, 5, 4)),
        (1, 1, 3, 5),
        2 * 3 * 4 * 5,
    ),
    "einsum, the larger first": (
        Holds(lambda x, a: torch.einsum("...jk,...ij", a, x), (1, 2, 5, 4)),
        (1, 1, 3, 5),
        2 * 3 * 4 * 5,
    ),
    "einsum, an ellipsis alone": (
        Holds(lambda x, a: torch.einsum("...,...", x, a), (3, 5)),
        (1, 3, 5),
        0,
    ),
    "einsum without a sum": (
        Holds(lambda x, a: torch.einsum("bij,j->bij", x, a), (5,)),
        (1, 3, 5),
        0,
    ),
    "einsum, summed before": (
        Holds(lambda x, a: torch.einsum("bijl,jk->bik", x, a), (5, 6)),
        (1, 3, 5, 4),
        3 * 5 * 6,
    ),
    "einsum of three": (
        Holds(lambda x, a, b: torch.einsum("ij,jk,kl->il", x[0], a, b), (4, 5), (5, 6)),
        (1, 3, 4),
        3 * 4 * 5 + 3 * 5 * 6,
    ),
    "einsum, large, to the last digit": (
        Holds(lambda x, a: torch.einsum("bij,jk->bik", x, a), (173, 211)),
        (1, 97, 173),
        97 * 173 * 211,
    ),
    "product and sum": (lambda x: (x[:, None] * x[:, :, None]).sum(-1), (1, 3, 5), 3 * 3 * 5),
    "product and sum behind a reshape": (
        lambda x: (x[:, None] * x[:, :, None]).permute(0, 3, 1, 2).reshape(1, 5, 9).sum(1),
        (1, 3, 5),
        3 * 3 * 5,
    ),
    "product in place and sum": (lambda x: x.clone().mul_(x).sum(), (1, 3, 5), 15),
    "product, copied, and sum": (lambda x: (x * x).clone().sum(-1), (1, 3, 5), 15),
    "a product written over is none": (lambda x: (x * x).relu_().sum(-1), (1, 3, 5), 0),
    "a gate written over is none": (
        lambda x: x.clone().mul_(x).add_(x).sum(-1),
        (1, 3, 5),
        0,
    ),
    "half a product is none": (lambda x: (x * x)[..., :2].sum(-1), (1, 3, 5), 0),
    "a product repeated is none": (lambda x: (x * x).expand(5, 3, 5).sum(0), (1, 3, 5), 0),
    "a sum over one is no product": (lambda x: (x * x).sum(0), (1, 3, 5), 0),
    "a gate is no product": (lambda x: (x * x.sigmoid()).mean((1, 2)), (1, 3, 5), 0),
    "a scaled sum is no product": (lambda x: (x * 0.5).sum(1), (1, 3, 5), 0),
    "a sum scaled by a tensor is no product": (
        Holds(lambda x, a: (x * a[0]).sum(1), (2,)),
        (1, 3, 5),
        0,
    ),
}


@pytest.mark.parametrize("meta", [True, False], ids=["meta", "data"])
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_counts_what_was_counted_by_hand_in_both_counters(name, meta):
    function, shape, by_hand = OPERATORS[name]
    found = counted(function, *shape, meta=meta)
    if not meta and shape[0] > 1:
        assert found.macs == by_hand  # of the one input that it was run with
    assert (found.macs, found.second, found.doubts) == (by_hand, by_hand, ())


def test_einsum_follows_the_path_it_is_given():
    shapes = [(3, 4), (4, 5), (5, 6)]
    assert rules.einsum("ij,jk,kl->il", shapes) == 3 * 4 * 5 + 3 * 5 * 6
    assert rules.einsum("ij,jk,kl->il", shapes, [2, 1, 0, 1]) == 4 * 5 * 6 + 3 * 4 * 6


@pytest.mark.parametrize(
    ("function", "shape", "by_hand"),
    [
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (1, 2, 3, 4), 4 * 96),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), (1, 2, 3, 4), 16 * 96),
        (lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), (1, 2, 3, 4), 96),
        (lambda x: F.interpolate(x, (5, 6), mode="bicubic", antialias=True), (1, 2, 3, 4), 960),
        (lambda x: F.interpolate(x, (5, 6), mode="bilinear", antialias=True), (1, 2, 3, 4), 240),
        (lambda x: F.interpolate(x, scale_factor=2, mode="linear"), (1, 2, 3), 2 * 12),
        (lambda x: F.interpolate(x, scale_factor=2), (1, 2, 3), 12),
        (lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), (1, 2, 1, 1, 1), 8 * 16),
        (nn.AdaptiveAvgPool1d(2), (1, 2, 6), 12),
        (nn.AdaptiveAvgPool2d(2), (1, 2, 6, 6), 72),
        (lambda x: roi_align(x, [x.new_zeros(3, 4)], (5, 6), sampling_ratio=2), (1, 2, 8, 8), 2880),
        (lambda x: F.grid_sample(x, x.new_zeros(1, 5, 6, 2)), (1, 2, 3, 4), 4 * 60),
        (lambda x: F.grid_sample(x, x.new_zeros(1, 5, 6, 2), "bicubic"), (1, 2, 3, 4), 16 * 60),
        (lambda x: F.grid_sample(x, x.new_zeros(1, 5, 6, 2), "nearest"), (1, 2, 3, 4), 60),
        (lambda x: F.grid_sample(x, x.new_zeros(1, 5, 6, 7, 3)), (1, 2, 3, 4, 5), 8 * 420),
        (nn.LayerNorm(4), (1, 3, 4), 5 * 12),
        (nn.LayerNorm(4, elementwise_affine=False), (1, 3, 4), 4 * 12),
        (nn.LayerNorm(2), (1, 2, 2, 2, 2, 2), 5 * 32),
        (nn.RMSNorm(4), (1, 3, 4), 3 * 12),
        (nn.GroupNorm(2, 4), (1, 4, 3), 5 * 12),
        (nn.BatchNorm2d(4), (1, 4, 3, 3), 2 * 36),
        (nn.InstanceNorm2d(4, affine=True), (1, 4, 3, 3), 5 * 36),
    ],
)
def test_norms_and_sampling_are_in_the_first_count_alone(function, shape, by_hand):
    found = counted(function, *shape)
    assert (found.macs, found.second, found.doubts) == (by_hand, 0, ())


def test_the_kernels_of_a_gpu_are_counted_without_one():
    def flash(x):  # (b, n, heads, d)
        return torch.ops.aten._flash_attention_forward(
            x, x[:, ::2], x[:, ::2], None, None, 10, 5, 0.0, False, False
        )[0]

    def efficient(x):
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            x, x, x[..., :4], None, False
        )[0]

    def rows(x):  # (b, n, heads, d)
        return torch.ops.aten._efficient_attention_forward(
            x, x[:, ::2], x[:, ::2, :, :4], None, None, None, None, None, 0.0, 0
        )[0]

    assert counted(flash, 1, 10, 4, 8).macs == 2 * 10 * 5 * 32
    assert counted(efficient, 1, 4, 10, 8).macs == 4 * 10 * 10 * (8 + 4)
    assert counted(rows, 1, 10, 4, 8).macs == 4 * 10 * 5 * (8 + 4)


def test_a_formula_that_a_user_registers_serves_both_counters():
    @torch.library.custom_op("datbench_test::mix", mutates_args=())
    def mix(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ y.mT

    mix.register_fake(lambda x, y: x @ y.mT)
    before = counted(lambda x: torch.ops.datbench_test.mix(x, x), 1, 3, 5)
    assert before.doubts == ("uncounted_ops: no rule for datbench_test::mix (1)",)

    @register_flop_formula(torch.ops.datbench_test.mix)
    def formula(x, y, out_shape=None, **_):
        return 2 * math.prod(out_shape) * x[-1]

    after = counted(lambda x: torch.ops.datbench_test.mix(x, x), 1, 3, 5)
    assert (after.macs, after.second, after.doubts) == (45, 45, ())


class NATTEN2DQKRPBFunction(torch.autograd.Function):
    """The name and the shapes of NATTEN's: scores of each query in a window of 9 keys."""

    @staticmethod
    def forward(ctx, query, key, bias, kernel_size, dilation):
        return query.new_zeros(*query.shape[:-1], kernel_size**2)


class NATTEN2DAVFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, attention, value, kernel_size, dilation):
        return torch.zeros_like(value)


class FusedNeighborhoodAttention2D(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, bias, kernel_size, dilation):
        return torch.zeros_like(value)


class FusedNeighborhoodAttention1D(FusedNeighborhoodAttention2D):
    pass


def test_what_is_hidden_in_neighborhood_attention_is_counted_once_and_says_so():
    def unfused(x):  # (b, heads, h, w, d)
        scores = NATTEN2DQKRPBFunction.apply(x, x, x.new_zeros(2, 5, 5), 3, 1)
        return NATTEN2DAVFunction.apply(scores.softmax(-1), x, 3, 1)

    def whole(x):  # (b, h, w, heads, d)
        return FusedNeighborhoodAttention2D.apply(x, x, x, None, (3, 3), (1, 1))

    def one_axis(x):  # (b, n, heads, d)
        return FusedNeighborhoodAttention1D.apply(x, x, x, None, 3, 1)

    assert counted(one_axis, 1, 7, 2, 4).macs == 2 * 7 * 8 * 3
    first, second = counted(unfused, 1, 2, 5, 7, 4), counted(whole, 1, 5, 7, 2, 4)
    assert first.macs == second.macs == 2 * 5 * 7 * 8 * 9
    assert first.second == second.second == 0
    assert first.doubts == (
        "one_counter: torch's counter does not see 0.00252 M of PythonOp.NATTEN2DQKRPBFunction, "
        "0.00252 M of PythonOp.NATTEN2DAVFunction",
    )


def test_operators_without_a_rule_are_named_apart_from_negligible_ones():
    found = counted(lambda x: torch.linalg.inv(x).relu().sigmoid() + x.sigmoid(), 1, 5, 5)
    assert found.doubts == ("uncounted_ops: no rule for linalg_inv (1)",)
    listed = {row.name: (row.calls, row.counted) for row in found.operators}
    assert listed["linalg_inv"] == (1, "unknown")
    assert listed["sigmoid"] == (2, "negligible")


class Branching(nn.Module):
    """Looks at its data, as a router does."""

    def __init__(self):
        super().__init__()
        self.conv, self.never = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.never(x) if x.abs().sum() < 0 else self.conv(x)


def test_a_model_that_looks_at_its_data_is_counted_with_one_input():
    found = counted(Branching(), 8, 3, 5, 6)
    assert (found.macs, found.second, found.doubts) == (30 * 12, 30 * 12, ())


@dataclasses.dataclass
class Boxes:
    maps: torch.Tensor
    scores: dict[str, torch.Tensor]


def test_outputs_of_any_kind_are_traced():
    class Detects(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            maps = self.conv(x)
            return Boxes(maps, {"a": maps.sum(1), "b": [maps.mean()]})

    found = counted(Detects(), 1, 3, 5, 6)
    assert (found.macs, found.doubts) == (360, ())
    assert found.modules[0].output == "1x4x5x6, 1x5x6, "


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        if torch.jit.is_tracing():
            raise RuntimeError("no tracing here\nsecond line")
        return self.conv(self.norm(x))


def test_torchs_counter_stands_in_where_fvcore_cannot_trace():
    found = counted(Untraceable(), 2, 3, 5, 6)
    assert (found.macs, found.second) == (360, None)
    (doubt,) = found.doubts
    assert doubt.startswith(
        "one_counter: fvcore cannot trace it (RuntimeError: no tracing here); torch's"
    )
    assert {row.name: row.macs for row in found.modules} == {"": 360, "norm": 0, "conv": 360}
    assert [(row.name, row.macs) for row in found.operators] == [("convolution", 360)]


def test_functions_that_torch_compile_made_run_as_they_are_written():
    found = counted(compiled, 1, 3, 5)
    assert (found.macs, found.second) == (45, None)
    assert "one_counter: fvcore cannot trace it" in found.doubts[0]


def test_a_model_that_cannot_be_copied_is_counted_as_it_is():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    net.lock = threading.Lock()
    found = counted(net, 2, 3)
    assert (found.macs, found.second, found.doubts) == (32, 32, ())
    assert net[0].weight.requires_grad
    assert not any(module._forward_hooks for module in net.modules())


def test_scripted_parts_are_counted():
    net = nn.Sequential(torch.jit.script(nn.Linear(3, 4)), nn.Linear(4, 5))
    assert counted(net, 1, 3).macs == 32
    assert counted(torch.jit.script(nn.Linear(3, 4)), 1, 3).macs == 12


def test_a_shared_module_counts_where_it_is_called():
    shared = nn.Linear(4, 4, bias=False)
    net = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared, nn.Linear(4, 4)))
    found = counted(net, 1, 3, 4)
    rows = {row.name: (row.macs, row.second) for row in found.modules}
    assert rows == {"": (144, 144), "0": (48, 48), "0.0": (96, 96), "1": (96, 96), "1.1": (48, 48)}


def test_a_failed_trace_leaves_nothing_for_the_next_one():
    for _ in range(3):
        counted(Untraceable(), 1, 3, 5, 6)
        assert counted(nn.Conv2d(3, 4, 1), 1, 3, 5, 6).doubts == ()


def test_a_model_that_no_counter_can_run_has_no_count():
    def fails(x):
        raise ValueError("not today")

    found = counted(fails, 1, 3)
    assert (found.macs, found.second, found.modules) == (None, None, ())
    assert found.doubts == (
        "not_counted: fvcore: ValueError: not today; torch's counter: ValueError: not today",
    )


def test_counters_that_disagree_name_the_modules(monkeypatch):
    monkeypatch.setitem(rules.DISPATCHED, "torchvision::deform_conv2d", lambda *_, **__: 0)
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(Deformed()))
    (doubt,) = counted(net, 1, 4, 6, 10).doubts
    assert doubt == (
        "macs_disagree: fvcore counts 5.28e-05 G in products, torch's counter 3.984e-05 G; "
        "they differ in 1.0.conv (0.01296 M, 0 M)"
    )


@pytest.mark.parametrize(("part", "flagged"), [(0.985, False), (0.975, True)])
def test_two_percent_apart_is_too_far(monkeypatch, part, flagged):
    def less(x, weight, *_, out_shape, **__):
        return round(part * math.prod(out_shape) * math.prod(weight[1:]))

    monkeypatch.setitem(rules.DISPATCHED, "torchvision::deform_conv2d", less)
    offsets = torch.zeros(1, 18, 8, 10)
    net = Holds(lambda x, w, o: deform_conv2d(x, o, w, padding=1), (6, 4, 3, 3), offsets.shape)
    assert bool(counted(net, 1, 4, 8, 10).doubts) == flagged


def test_the_parts_add_up_to_the_whole():
    found = counted(zoo.create_model("dat_tiny"), 1, 3, 224, 224)
    rows = {row.name: row for row in found.modules}
    assert found.macs == rows[""].macs == sum(row.macs for row in found.operators)
    assert rows["stages"].macs == sum(rows[f"stages.{i}"].macs for i in range(4))
    top = [row for name, row in rows.items() if name and "." not in name]
    assert sum(row.macs for row in top) == found.macs
    head = rows["cls_head"]
    assert (head.kind, head.params, head.macs) == ("Linear", 769_000, 768_000)
    assert (head.activations, head.output) == (1000, "1x1000")
    assert rows["patch_proj.0"].macs == 56 * 56 * 96 * 48
    assert rows["stages.2.attns.1.proj_q"].macs == 14 * 14 * 384 * 384
    for row in rows.values():
        assert row.products == row.second


class Masked(nn.Module):
    """Twice the products that are needed, half of them masked."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(16, 32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wide(x)[:, :16]

    def excess_macs(self, x: torch.Tensor) -> int:
        return 16 * 16 * x.shape[-2] * x.shape[-1]


def test_masked_products_are_left_out_of_the_module_that_does_them():
    net = nn.Sequential(nn.Conv2d(16, 16, 1), Masked())
    found = count(copies_of(net.eval()), torch.randn(2, 16, 9, 13))
    by_hand = 9 * 13 * (16 * 16 + 16 * 16)
    assert found.macs == found.second == found.modules[0].products == by_hand
    assert found.modules[2].macs == by_hand - 9 * 13 * 16 * 16
    masked = next(row for row in found.operators if row.name == counters.MASKED)
    assert masked.macs == -9 * 13 * 16 * 16
    assert sum(row.macs for row in found.operators) == by_hand


@pytest.mark.parametrize("impl", ["fast", "reference"])
def test_a_block_counts_the_same_however_it_is_computed(impl):
    block = zoo.create_block("neighborhood", 16, heads=4, impl=impl)
    found = count(copies_of(block.eval()), torch.randn(2, 16, 9, 13))
    assert found.macs == found.second == 9 * 13 * (4 * 16 * 16 + 2 * 16 * 49)
    options = {"position": "table", "table_size": (9, 9)}
    block = zoo.create_block("dat", 32, impl=impl, **options).eval()
    reference = zoo.create_block("dat", 32, impl="reference", **options).eval()
    images = torch.randn(2, 32, 9, 9)
    assert count(copies_of(block), images).macs == count(copies_of(reference), images).macs
    assert block.impl == impl


def test_activations_are_what_timm_publishes():
    """Millions of `mactivations` of timm's benchmark files."""
    for name, published in (("swin_tiny", 17.06), ("pvt_v2_b1", 15.39)):
        found = counted(zoo.create_model(name), 1, 3, 224, 224)
        assert found.modules[0].activations / 1e6 == pytest.approx(published, abs=0.005)


def test_activations_are_those_of_one_image():
    found = counted(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(120, 7)), 8, 3, 5, 6)
    assert [row.activations for row in found.modules] == [127, 120, 0, 7]
    assert [row.calls for row in found.operators[:2]] == [1, 1]


def test_a_batch_counts_one_image_and_what_is_done_once_a_batch_is_shared():
    once = Holds(lambda x, a: x + (a @ a).sum(), (8, 8))
    for batch in (1, 4):
        assert counted(once, batch, 3).macs == 512 // batch
        assert counted(nn.Linear(3, 5), batch, 3).macs == 15


def test_counting_on_meta_tensors_needs_no_memory():
    images = torch.empty(10**6, 3, 224, 224, device="meta")  # 560 GiB, and the maps many times that
    found = count(copies_of(zoo.create_model("swin_tiny").eval()), images)
    assert found.macs == pytest.approx(4.5092e9, rel=1e-4)
    assert found.doubts == ()


def test_a_large_model_is_never_built():
    """170 GiB of weights."""

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Linear(3, 2**17)
            self.layers = nn.Sequential(*[nn.Linear(2**17, 2**17) for _ in range(3)])

        def forward(self, x):
            return self.layers(self.wide(x.mean((2, 3))))

    class Case:
        def build(self):
            return Large()

    found = count(built_from(Case()), torch.empty(1, 3, 8, 8, device="meta"))
    assert found.macs == 3 * 2**17 + 3 * 2**34


def test_a_model_that_is_built_here_may_hand_its_parameters_to_modules():
    class Case:
        def build(self):
            return Hands()

    found = count(built_from(Case()), torch.empty(1, 3, 4, device="meta"))
    assert (found.macs, found.second, found.doubts) == (80, 80, ())


@pytest.mark.parametrize("name", ["dat_tiny", "dat_pp_tiny", "pvt_small", "pvt_v2_b0", "swin_tiny"])
def test_classifiers_of_the_zoo_are_built_without_weights(name):
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in zoo.create_model(name).parameters())


def test_a_detector_is_counted_at_the_size_it_is_given():
    plan = make_plan(["yolov8n", "yolov8n"], img_size=320, device="cpu", image="noise")
    shape = (1, *plan.cases[0].workload.input_shape)
    small = count(built_from(plan.cases[0]), torch.empty(shape, device="meta"))
    full = count(built_from(plan.cases[0]), torch.empty(1, 3, 640, 640, device="meta"))
    assert small.macs * 4 == pytest.approx(full.macs, rel=1e-6)
    assert full.macs == pytest.approx(4.4010e9, rel=1e-4)


def test_a_fused_detector_has_no_batch_norms():
    (case,) = make_plan(["yolov8n"], device="cpu", image="noise").cases
    found = count(built_from(case, fuse=True), torch.empty(1, 3, 640, 640, device="meta"))
    assert "batch_norm" not in {row.name for row in found.operators}
    assert found.macs == pytest.approx(4.3732e9, rel=1e-4)


FLEX = flex_attention.__code__


@pytest.mark.parametrize("fast", [True, False])
def test_what_was_switched_for_counting_is_as_it_was(fast):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        counted(flexible, 1, 10, 16)
        with pytest.raises(KeyboardInterrupt):
            counted(_interrupted, 1, 3)
        assert torch.backends.mha.get_fastpath_enabled() == fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert FLEX.co_name == "flex_attention"
    assert flex_attention.__code__ is FLEX
    assert flex_attention.__kwdefaults__ == {"return_aux": None}


def _interrupted(x):
    raise KeyboardInterrupt


def test_counting_leaves_the_model_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).half()
    net.kept = torch.ones(100)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    build = copies_of(net.eval())
    count(build, torch.randn(1, 3, 4, 4).half())
    assert not any(module._forward_hooks for module in build("meta").modules())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert net[0].weight.requires_grad
    assert net[0].weight.dtype == torch.float16
    assert not net._forward_hooks
    assert torch.equal(net.kept, torch.ones(100))
