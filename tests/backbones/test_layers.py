"""The ways that convolutions and shuffles go on a CPU under autocast and torch.compile, against the plain ones."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from facebones.backbones import create_backbone, layers
from facebones.backbones.layers import MERGED_WIDTH, GroupedConv2d, shuffle, shuffle_two, unshuffle

DRAW = torch.Generator().manual_seed(0)


def results(compute, x, parameter):
    """Output and both gradients."""
    y = compute(x)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((y.float() * weight).sum(), (x, parameter))
    return [y, *gradients]


@pytest.mark.parametrize(
    ("channels", "groups", "kernel", "stride", "padding", "size", "dtype", "bound"),
    [
        pytest.param(128, 64, 3, 1, 1, 10, torch.bfloat16, 0.01, id="mobilefacenet_wide, groups of 2"),
        pytest.param(256, 64, 3, 2, 1, 10, torch.bfloat16, 0.01, id="mobilefacenet_large, groups of 4"),
        pytest.param(36, 12, 3, 1, 1, 10, torch.bfloat16, 0.01, id="groups of 3, which 32 is no multiple of"),
        pytest.param(6, 3, 3, 1, 1, 10, torch.bfloat16, 0.01, id="fewer channels than a merged group"),
        pytest.param(16, 16, 3, 2, 1, 10, torch.float32, 1e-5, id="depthwise"),
        pytest.param(16, 16, 7, 1, 0, 7, torch.float32, 1e-5, id="global depthwise"),
        pytest.param(16, 16, 7, 1, 0, 9, torch.float32, 1e-5, id="depthwise of a larger map"),
        pytest.param(128, 2, 3, 1, 1, 10, torch.float32, 1e-5, id="wide groups"),
        pytest.param(6, 3, 3, 1, 1, 7, torch.bfloat16, 0.01, id="an odd map"),
    ],
)
def test_grouped_convolutions_under_autocast(channels, groups, kernel, stride, padding, size, dtype, bound):
    convolution = GroupedConv2d(channels, channels, kernel, stride, padding, groups=groups, bias=False)
    x = torch.randn(3, channels, size, size, generator=DRAW, requires_grad=True)
    plain = results(convolution, x, convolution.weight)
    with torch.autocast("cpu", torch.bfloat16):
        half = results(convolution, x, convolution.weight)
    assert half[0].dtype == dtype
    for found, expected in zip(half, plain, strict=True):
        assert found.shape == expected.shape
        assert (found - expected).norm() < bound * expected.norm()


def test_merged_groups_take_nothing_from_their_neighbours():
    convolution = GroupedConv2d(2 * MERGED_WIDTH, 2 * MERGED_WIDTH, 3, 1, 1, groups=MERGED_WIDTH, bias=False)
    x = torch.zeros(1, 2 * MERGED_WIDTH, 4, 4)
    x[:, 6:8] = 1
    with torch.autocast("cpu", torch.bfloat16):
        touched = convolution(x).detach().abs().sum((0, 2, 3)) > 0
    assert touched.nonzero().flatten().tolist() == [6, 7]


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_shuffle_is_the_same_when_compiled(dtypes, memory_format):
    first, second = (
        torch.randn(2, 6, 5, 5, generator=DRAW).to(dtype, memory_format=memory_format).requires_grad_()
        for dtype in dtypes
    )
    expected = functional.channel_shuffle(torch.cat((first, second), dim=1), 2)
    assert torch.equal(expected[:, 0::2], first) and torch.equal(expected[:, 1::2], second)
    graphs = []

    def keep_graph(graph, inputs):
        graphs.append(graph.code)
        return aot_eager(graph, inputs)

    compiled = torch.compile(shuffle_two, backend=keep_graph, fullgraph=True)
    found = compiled(first, second)
    with torch.no_grad():
        assert torch.equal(compiled(first.detach(), second.detach()), expected)
    assert ["facebones.interleave" in code for code in graphs] == [True, False]
    assert torch.equal(shuffle_two(first, second), expected) and torch.equal(found, expected)
    weight = torch.randn(expected.shape, generator=DRAW)
    ours, plain = (torch.autograd.grad((y * weight).sum(), (first, second)) for y in (found, expected))
    for found, expected in zip(ours, plain, strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_an_exported_graph_needs_no_operator_of_this_package():
    backbone = create_backbone("shufflefacenet_0_5").eval()
    assert "facebones" not in str(torch.export.export(backbone, (torch.randn(2, 3, 112, 112),)).graph)


def test_the_operators_keep_what_they_promise():
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.facebones.interleave, (x, x))
    torch.library.opcheck(torch.ops.facebones.deinterleave, (x.detach(),))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_shuffles_of_other_devices_compute_the_same_in_channels_last(memory_format):
    x = torch.randn(2, 6, 5, 4, generator=DRAW).contiguous(memory_format=memory_format)
    alternating, separate = layers._alternate(*x.chunk(2, dim=1)), layers._separate(x)
    assert torch.equal(alternating, shuffle(x)) and torch.equal(separate, unshuffle(x))
    assert torch.equal(unshuffle(shuffle(x)), x)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in (alternating, separate))


def test_parts_of_unequal_width_are_shuffled_as_one():
    x = torch.randn(2, 6, 5, 4, generator=DRAW)
    assert torch.equal(shuffle_two(x[:, :4], x[:, 4:]), functional.channel_shuffle(x, 2))
    torch.compiler.reset()  # after the other tests' forms it would be one too many
    compiled = torch.compile(shuffle_two, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x[:, :4].requires_grad_(), x[:, 4:]), functional.channel_shuffle(x, 2))


@pytest.mark.parametrize("name", ["shufflefacenet_0_5", "study_shufflefacenet_1_0", "study_shufflemixfacenet_xs"])
def test_networks_off_the_cpu_need_no_operator_that_mps_lacks(name):
    called = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.add(str(function))
            return function(*args, **(kwargs or {}))

    backbone = create_backbone(name).eval().to("meta")
    with torch.no_grad(), Watch():
        backbone(torch.empty(2, 3, 112, 112, device="meta"))
    assert any("convolution" in one for one in called)
    assert not any("channel_shuffle" in one for one in called)
