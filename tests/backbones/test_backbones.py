"""Every registered backbone: its count, its cost, and that it can be trained, saved and loaded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from facebones.backbones import create_backbone, list_backbones, lookup_backbone, timm_models
from facebones.backbones.catalogue import CATALOGUE, read_catalogue
from facebones.backbones.mixfacenet import STAGES_S, MixFaceNet
from facebones.backbones.shufflefacenet import ShuffleFaceNet
from facebones.errors import ConfigError, UnknownNameError
from facebones.profiling.cost import count_macs, count_parameters, describe_backbones, unused_parameters

GOLDEN = Path(__file__).parents[1] / "golden"
COSTS = json.loads((GOLDEN / "backbones.json").read_text())["backbones"] | {
    # arXiv 2307.01838, table 1, to the unit as its code counts them
    "edgeface_xxs": {"parameters": 1_244_744, "macs_millions": 46.76},
    "edgeface_xs": {"parameters": 1_770_492, "macs_millions": 76.08},
    "edgeface_s": {"parameters": 3_652_520, "macs_millions": 151.92},
    "edgeface_base": {"parameters": 18_225_812, "macs_millions": 696.09},
}
OUTDATED = f"run: facebones backbones --catalogue > {CATALOGUE}"
REFERENCES = [
    pytest.param(family, name, id=name)
    for family in ("insightface", "mixfacenets", "study", "facelivt", "pocketnet")
    for name in np.load(GOLDEN / f"{family}_outputs.npz")
    if not name.endswith("_deploy")
]
IN_FLOAT64 = {"facelivt", "pocketnet"}  # computed in it by the originals
# These weights amplify rounding in its 49 units, also if channels are weighed in float32.
AMPLIFYING = {"ir_se_101": 0.15}
NAMES = [name for name in list_backbones() if name != "tiny_for_tests"]
WIDER = {  # of a network among the quick ones, with the same layers
    *("ghostfacenet_v1_1_0_s1", "ghostfacenet_v1_1_0_s2", "ghostfacenet_v1_1_3_s1", "ghostfacenet_v1_1_3_s2"),
    *("ghostfacenet_v2_1_0_s1", "ghostfacenet_v2_1_3_s1", "ghostfacenet_v2_1_3_s2"),
    *("mobilenet_v1_0_50", "mobilenet_v1_1_0", "mobilenet_v3_large"),
}
QUICK = [name for name in NAMES if COSTS[name]["macs_millions"] < 1000 and name not in WIDER]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in QUICK]


def on_meta(name, **options):
    with torch.device("meta"):
        return create_backbone(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_counts_equal_the_golden_ones_and_those_of_the_catalogue(name, monkeypatch):
    asked, import_timm = set(), timm_models.import_timm
    monkeypatch.setattr(timm_models, "import_timm", lambda: asked.add("timm") or import_timm())
    (counted,) = describe_backbones(name)
    assert counted["parameters"] == COSTS[name]["parameters"]
    # Older golden figures are printed to 0.01 M, which is more than 0.1 % of the smallest.
    exact = "exact" in COSTS[name]
    tolerance = {"rel": 0, "abs": 0.00051} if exact else {"rel": 1e-3, "abs": 0.005}
    assert counted["macs"] / 1e6 == pytest.approx(COSTS[name]["macs_millions"], **tolerance)
    needs = lookup_backbone(name).needs
    assert asked == {needs} - {None}
    (row,) = [row for row in read_catalogue() if row["name"] == name] or [{}]
    assert row | {"problem": None} == counted | {"needs": needs, "family": lookup_backbone(name).family}, OUTDATED


@pytest.mark.parametrize(
    ("name", "size", "parameters", "macs_millions"),
    [
        ("mobilefacenet", 128, 1_003_136, 220.97),
        ("pocketnet_s", 128, 925_632, 283.541),
        ("pocketnet_s", 256, 991_424, 283.607),
        ("pocketnet_m", 128, 1_686_656, 538.216),
        ("pocketnet_m", 256, 1_752_448, 538.281),
    ],
)
def test_the_papers_sizes_with_fewer_elements(name, size, parameters, macs_millions):
    backbone = on_meta(name, embedding_size=size)
    assert count_parameters(backbone) == parameters
    assert count_macs(backbone) / 1e6 == pytest.approx(macs_millions, abs=0.005)


@pytest.mark.parametrize(
    ("widths", "parameters", "macs_millions"),
    [
        ((48, 96, 192), 525_510, 33.54),
        ((116, 232, 464), 1_437_322, 137.97),
        ((176, 352, 704), 2_662_342, 288.82),
        ((244, 488, 976), 4_527_242, 526.32),
    ],
)
def test_shufflefacenet_with_one_prelu_parameter_a_layer(widths, parameters, macs_millions):
    with torch.device("meta"):
        backbone = ShuffleFaceNet(widths, 128, 0.0, shared_prelu=True)
    assert count_parameters(backbone) == parameters
    assert count_macs(backbone) / 1e6 == pytest.approx(macs_millions, rel=1e-3)


@pytest.mark.parametrize(("family", "name"), REFERENCES)
def test_outputs_equal_the_originals_under_their_own_keys(family, name, golden_tensor):
    shapes = json.loads((GOLDEN / f"{family}_keys.json").read_text())[name]
    expected = np.load(GOLDEN / f"{family}_outputs.npz")[name]
    size = expected.shape[1]  # "pocketnet_s_128" has it in its name
    backbone = create_backbone(name.removesuffix(f"_{size}"), size).eval()
    backbone.load_state_dict({key: golden_tensor(key, shape) for key, shape in shapes.items()})
    x = torch.from_numpy(np.random.RandomState(5).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32))
    with torch.no_grad():
        error = np.abs(backbone(x).numpy() - expected).max() / np.abs(expected).max()
        assert error <= (2e-5 if family in IN_FLOAT64 else 1e-4)
        if family in IN_FLOAT64:
            error = np.abs(backbone.double()(x.double()).numpy() - expected).max() / np.abs(expected).max()
            assert error <= 1e-6


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_every_parameter_that_is_used_gets_a_gradient(name):
    torch.manual_seed(0)
    backbone = create_backbone(name)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            torch.nn.init.ones_(module.weight)  # FaceLiVT begins with branches that add nothing
    backbone(torch.randn(3, 3, 112, 112)).square().sum().backward()
    without = [key for key, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    zero = [key for key, p in backbone.named_parameters() if p.grad is not None and not p.grad.any()]
    assert without == unused_parameters(backbone)
    assert sum(backbone.get_parameter(key).numel() for key in without) == COSTS[name].get("unused_parameters", 0)
    # A bias before a batch normalisation is undone by it; its gradient is zero up to rounding.
    assert zero == []


def test_the_study_networks_say_which_parameters_they_do_not_use():
    layers = ("expand", "expand_bn", "expand_act", "dw", "dw_bn", "project", "project_bn")
    named = unused_parameters(on_meta("study_mixfacenet_xs"))
    assert {name.rpartition(".")[0] for name in named} == {f"embedding.{layer}" for layer in layers}


@pytest.mark.parametrize("name", list_backbones("*mixfacenet*"))
def test_the_study_networks_are_not_the_papers(name):
    paper = name.removeprefix("study_")
    assert (count_macs(on_meta(name)) > 7e7) == (name == paper)


def test_init_shuffle_changes_the_output_and_no_count():
    options = {"stages": STAGES_S, "width": 0.5, "stem_width": 16, "tail_width": 512, "shuffle": False}
    networks = []
    for init_shuffle in (True, False):
        torch.manual_seed(0)
        networks.append(MixFaceNet(**options, embedding_size=128, dropout=0.0, init_shuffle=init_shuffle).eval())
    first, second = networks
    x = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        assert not torch.equal(first(x), second(x))
    assert count_parameters(first) == count_parameters(second)
    assert count_macs(first) == count_macs(second)


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
@pytest.mark.parametrize("size", [pytest.param(128, marks=pytest.mark.slow), 512])
def test_output_is_float32_also_under_autocast_and_channels_last(name, size, scaled_backbone):
    backbone = scaled_backbone(name, embedding_size=size)
    x = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        plain = backbone(x)
        backbone.to(memory_format=torch.channels_last)
        channels_last = backbone(x.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            half = backbone(x)
    assert plain.shape == half.shape == (3, size)
    assert plain.dtype == half.dtype == torch.float32
    assert (channels_last - plain).norm() < 1e-4 * plain.norm()
    assert (half - plain).norm() < AMPLIFYING.get(name, 0.1) * plain.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_graph_is_captured_whole_and_answers_the_same(name, scaled_backbone):
    torch._dynamo.reset()  # networks of one family share their code, which is captured eight times at most
    backbone = scaled_backbone(name)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = backbone(x)
        assert (compiled(x) - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "facelivt_s",
        "facelivtv2_xs",
        "iresnet18",
        "mobilefacenet_wide",
        "pocketnet_m",
        "shufflefacenet_0_5",
        "shufflemixfacenet_xs",
        "edgeface_xs",
    ]
    + ["ir_se_18", "mobilenet_v1_0_25", "mobilenet_v3_small", "mobilefacenet_cavaface"]
    + ["ghostfacenet_v1_0_5_s2", "ghostfacenet_v2_1_0_s2", "vit_t"]
    + ["study_shufflefacenet_0_5", "study_shufflemixfacenet_xs"],
)
def test_compiled_code_of_each_family_answers_the_same(name, scaled_backbone):
    torch._dynamo.reset()
    backbone = scaled_backbone(name)
    x = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = backbone(x)
        assert (torch.compile(backbone)(x) - expected).norm() < 1e-4 * expected.norm()


def gradient_of_a_step(network, x, fast):
    network.zero_grad()
    step = torch.compile(network, fullgraph=True, backend="aot_eager") if fast else network
    layout = torch.channels_last if fast else torch.contiguous_format
    network.to(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16, enabled=fast):
        embeddings = step(x.contiguous(memory_format=layout))
    torch.nn.functional.normalize(embeddings)[:, :8].sum().backward()
    return torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["facelivt_s", "facelivtv2_xs", "pocketnet_m"])
def test_a_step_in_bf16_channels_last_and_captured_has_the_direction_of_the_plain_one(name, scaled_backbone):
    network = scaled_backbone(name, embedding_size=64).train()
    x = torch.randn(6, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    plain, fast = (gradient_of_a_step(network, x, fast) for fast in (False, True))
    assert torch.nn.functional.cosine_similarity(plain, fast, dim=0) > 0.98


@pytest.mark.parametrize("name", QUICK)
def test_state_dict_round_trip(name):
    first, second = create_backbone(name).eval(), create_backbone(name).eval()
    x = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        assert not torch.equal(first(x), second(x))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(x), second(x))


@pytest.mark.parametrize(
    "name",
    [
        "edgeface_xs",
        "ghostfacenet_v1_0_5_s2",
        "ir_18",
        "facelivt_s",
        "facelivtv2_xs",
        "iresnet18",
        "mobilefacenet",
        "mobilefacenet_cavaface",
        "mobilefacenet_wide",
        "mobilenet_v1_0_25",
        "mobilenet_v3_small",
        "pocketnet_m",
        "shufflefacenet_0_5",
        "mixfacenet_xs",
        "study_shufflefacenet_0_5",
        "study_mixfacenet_xs",
        "vit_t",
    ],
)
def test_dropout_acts_in_training_only(name):
    torch.manual_seed(0)
    backbone = create_backbone(name, dropout=0.5)
    backbone.eval()
    x = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        assert torch.equal(backbone(x), backbone(x))
        dropouts = [module for module in backbone.modules() if isinstance(module, torch.nn.Dropout) and module.p]
        assert [module.p for module in dropouts] == [0.5]
        dropouts[0].train()
        assert not torch.equal(backbone(x), backbone(x))


@pytest.mark.parametrize(("name", "last"), [("r18", "features"), ("mixfacenet_xs", "features_norm")])
def test_the_last_weight_is_kept_at_one(name, last):
    weight = getattr(create_backbone(name), last).weight
    assert not weight.requires_grad
    assert torch.equal(weight, torch.ones(512))


def test_names_aliases_and_patterns():
    assert create_backbone("mbf").name == "mobilefacenet_wide"
    assert lookup_backbone("r100").name == "iresnet100"
    assert lookup_backbone("ghostfacenet_v1_1_3_s1_bias").name == "ghostfacenet_v1_1_3_s1"
    assert list_backbones("shuffleface*") == [f"shufflefacenet_{width}" for width in ("0_5", "1_0", "1_5", "2_0")]
    # The study's pair of names is swapped, and its files must load.
    assert lookup_backbone("sfn1_0").name == "study_shufflefacenet_1_5"
    assert lookup_backbone("sfn1_5").name == "study_shufflefacenet_1_0"
    assert [row["name"] for row in describe_backbones("r5?")] == ["iresnet50"]
    assert set(NAMES) == set(COSTS)


def test_unknown_names_and_sizes_are_refused_in_one_line():
    with pytest.raises(UnknownNameError, match="unknown backbone 'mobilfacenet'; did you mean 'mobilefacenet'"):
        create_backbone("mobilfacenet")
    with pytest.raises(UnknownNameError, match="'pocketnet_s_128'; give pocketnet_s: files of weights show the embed"):
        create_backbone("pocketnet_s_128")
    with pytest.raises(UnknownNameError, match="unknown backbone 'zzz'; known: edgeface_base, "):
        describe_backbones("zzz")
    with pytest.raises(ConfigError, match="embedding size 0 is not in 1 to 65536"):
        create_backbone("r18", embedding_size=0)
    with pytest.raises(ConfigError, match=r"dropout 1.0 is not in \[0, 1\)"):
        create_backbone("r18", dropout=1.0)
