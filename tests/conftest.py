"""Small data sets and runs that many tests share."""

import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from facebones import plugins
from facebones.backbones import Backbone, create_backbone, list_backbones, register_backbone
from facebones.backbones import registry as backbones
from facebones.data import training_set as data_formats
from facebones.data.folders import open_training_set
from facebones.evaluation import protocol as protocols
from facebones.heads import registry as heads
from facebones.recipe import recipe_from_dict
from facebones.training import callbacks

ROOT = Path(__file__).parents[1]
REAL_FACES = ROOT.parent / "shared" / "faces"

# Plug-ins and programs of tests, which register what they hold: pytest must not import them to look for doctests.
collect_ignore = ["training/slow_tiny_network.py", "training/train_together.py"]

torch.set_num_threads(1)  # two test processes on two cores


@pytest.fixture(scope="session")
def real_faces():
    if not REAL_FACES.is_dir():
        pytest.skip(f"the real faces are not here: {REAL_FACES}")
    return REAL_FACES


PEAK = """
import sys
from pathlib import Path
import cv2, numpy

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

before = peak()
{code}
print(peak() - before)
"""


@pytest.fixture(scope="session")
def added_memory():
    """Run code in a process of its own; returns the highest memory that it takes beyond the start, in MiB.

    Not from `ru_maxrss`, which begins with the size of the process that started it.
    """
    if not Path("/proc/self/status").is_file():
        pytest.skip("memory is read from /proc")

    def measure(code, *arguments):
        command = [sys.executable, "-c", PEAK.format(code=code), *map(str, arguments)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024

    return measure


@pytest.fixture(scope="session")
def yunet():
    """The face detector of OpenCV's model zoo, beside the real faces."""
    path = REAL_FACES.parent / "models" / "yunet_2023mar_int8.onnx"
    if not path.is_file():
        pytest.skip(f"the face detector is not here: {path}")
    return path


@pytest.fixture(scope="session")
def green_detector(tmp_path_factory):
    """The file of a made-up detector in the form of YuNet: each green square of 8 pixels is the middle of a face.

    The face is upright and 112 pixels wide, so that cutting it out moves it and changes nothing. `photo_of` draws it.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    from facebones.data.preprocessing import REFERENCE

    width = np.log(112 / 8)
    biases = {"cls": [-9], "obj": [-9], "bbox": [0.5, 0.5, width, width], "kps": ((REFERENCE - 56) / 8 + 0.5).ravel()}
    rows = [numpy_helper.from_array(np.array([1, -1, size]), f"rows{size}") for size in (1, 4, 10)]
    nodes, weights, outputs = [], [], []
    for stride in (8, 16, 32):
        for name, bias in biases.items():
            kernel = np.zeros((len(bias), 3, stride, stride), np.float32)
            if stride == 8 and len(bias) == 1:
                kernel[0] = np.array([-1, 1, -1])[:, None, None] / (25 * 64)  # green, but not white
            part = f"{name}_{stride}"
            weights.append(numpy_helper.from_array(kernel, f"{part}_weight"))
            weights.append(numpy_helper.from_array(np.array(bias, np.float32), f"{part}_bias"))
            inputs = ["x", f"{part}_weight", f"{part}_bias"]
            nodes.append(helper.make_node("Conv", inputs, [f"{part}_map"], strides=[stride, stride]))
            nodes.append(helper.make_node("Transpose", [f"{part}_map"], [f"{part}_last"], perm=[0, 2, 3, 1]))
            nodes.append(helper.make_node("Reshape", [f"{part}_last", f"rows{len(bias)}"], [f"{part}_rows"]))
            kind = "Sigmoid" if len(bias) == 1 else "Identity"
            nodes.append(helper.make_node(kind, [f"{part}_rows"], [part]))
            outputs.append(helper.make_tensor_value_info(part, onnx.TensorProto.FLOAT, [1, None, len(bias)]))
    image = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, None, None])
    graph = helper.make_graph(nodes, "marks", [image], outputs, weights + rows)
    path = tmp_path_factory.mktemp("detector") / "green.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8), path)
    return path


@pytest.fixture(scope="session")
def photo_of():
    """Draw a photo, (320, 320, 3) RGB, with the face of a person at each place, and a mark in its middle.

    The sides of a place are 4 more than a multiple of 8: then the mark fills a cell of the detector.
    """
    from facebones.data.images import decode

    def draw(identity, number=0, places=((100, 92),)):
        photo = np.full((320, 320, 3), 90, np.uint8)
        for offset, (x, y) in enumerate(places):
            photo[y : y + 112, x : x + 112] = decode(noisy_image(identity + 10 * offset, number), "a face")
            photo[y + 52 : y + 60, x + 52 : x + 60] = (0, 255, 0)
        return photo

    return draw


def pytest_terminal_summary(terminalreporter):
    """Say how many tests were skipped for want of a GPU."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "gpu" in report.keywords]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests that need a GPU were skipped; `make gpu` runs them")


@pytest.fixture(autouse=True)
def forget_plugins():
    """Forget after each test what it registered and imported: no test depends on those before it."""
    list_backbones()  # our own backbones and protocols register when they are first asked for
    for name in protocols.list_protocols():
        protocols.lookup_protocol(name)
    kept = [(module._REGISTRY, module._REGISTRY.copy()) for module in (backbones, heads, protocols, data_formats)]
    registered_callbacks, imported = callbacks._REGISTRY.copy(), plugins._imported.copy()
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)
    callbacks._REGISTRY[:] = registered_callbacks
    plugins._imported[:] = imported
    for name in [name for name in sys.modules if name.startswith("facebones_plugin_")]:
        del sys.modules[name]


IDENTITIES, IMAGES_EACH, PAIRS = 4, 7, 20


def noisy_image(identity, number):
    """A JPEG whose coarse pattern is the identity's and whose noise is its own."""
    pattern = np.random.default_rng(identity).integers(0, 200, (7, 7, 3), dtype=np.uint8)
    noise = np.random.default_rng([identity, number]).integers(0, 56, (112, 112, 3), dtype=np.uint8)
    pixels = cv2.resize(pattern, (112, 112), interpolation=cv2.INTER_NEAREST) + noise
    return cv2.imencode(".jpg", pixels)[1].tobytes()


@pytest.fixture(scope="session")
def noisy():
    """The function that draws the images of `small_data` and `many_people`."""
    return noisy_image


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """An InsightFace folder of 28 images of 4 identities with the pair set tiny.bin beside it."""
    from facebones.data.pair_bins import write_pairs
    from facebones.datatools.convert import convert

    root = tmp_path_factory.mktemp("small")
    for identity in range(IDENTITIES):
        (root / "images" / f"person{identity}").mkdir(parents=True)
        for number in range(IMAGES_EACH):
            (root / "images" / f"person{identity}" / f"{number}.jpg").write_bytes(noisy_image(identity, number))
    convert(root / "images", root / "faces")
    images, is_same = [], []
    for pair in range(PAIRS):
        is_same.append(pair % 2 == 0)
        images += [noisy_image(100 + pair, 0), noisy_image(100 + pair if is_same[-1] else 500 + pair, 1)]
    write_pairs(root / "faces" / "tiny.bin", images, is_same)
    return root / "faces"


@pytest.fixture(scope="session")
def many_people(tmp_path_factory):
    """A folder of 176 images of 44 people, and a pair set of others, tiny.bin, in the same folder."""
    from facebones.data.pair_bins import write_pairs

    root = tmp_path_factory.mktemp("many") / "faces"
    for identity in range(44):
        (root / f"person{identity:02d}").mkdir(parents=True)
        for number in range(4):
            (root / f"person{identity:02d}" / f"{number}.jpg").write_bytes(noisy_image(identity, number))
    same = [pair % 2 == 0 for pair in range(PAIRS)]
    people = [(100 + pair, 100 + pair if same[pair] else 500 + pair) for pair in range(PAIRS)]
    write_pairs(
        root / "tiny.bin", [noisy_image(who, number) for pair in people for number, who in enumerate(pair)], same
    )
    return root


class TinyBackbone(Backbone):
    """A network that trains in a moment, and has what makes saving state hard.

    That is: running statistics, dropout, and parameters that get no gradient, as in the study's networks.
    """

    def __init__(self, embedding_size, dropout):
        super().__init__()
        self.embedding_size = embedding_size
        self.conv = nn.Conv2d(3, 8, 7, 8, bias=False)
        self.norm2d = nn.BatchNorm2d(8)
        self.prelu = nn.PReLU(8)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(8 * 14 * 14, embedding_size)
        self.unused = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(embedding_size)

    def forward(self, x):
        x = self.prelu(self.norm2d(self.conv(x))).flatten(1)
        return self.norm(self.linear(self.dropout(x))).float()


@pytest.fixture
def break_images(small_data, tmp_path):
    """Copy the small data with images that cannot be read; returns the folder, and the byte of the first's record."""

    def broken(*indices):
        folder = shutil.copytree(small_data, tmp_path / "broken")
        data = open_training_set(folder)
        places = [int(data.records.offsets[data.positions[index]]) for index in indices]
        content = bytearray((folder / "train.rec").read_bytes())
        for place in places:
            content[place + 32 : place + 48] = bytes(16)  # the beginning of the image, behind frame and header
        (folder / "train.rec").write_bytes(content)
        return folder, places[0]

    return broken


@pytest.fixture(scope="session")
def teacher(small_data, tmp_path_factory):
    """The path of a teacher's embeddings of the small data: 24 random numbers for each view of an image."""
    from teachers import write_teacher

    return write_teacher(tmp_path_factory.mktemp("teacher"), small_data)


@pytest.fixture(scope="session")
def tiny_backbone():
    """The name of a registered backbone that trains in a moment."""
    if "tiny_for_tests" not in list_backbones():

        @register_backbone()
        def tiny_for_tests(embedding_size, dropout):
            """A tiny network for tests."""
            return TinyBackbone(embedding_size, dropout)

    yield "tiny_for_tests"
    backbones._REGISTRY.pop("tiny_for_tests", None)


@pytest.fixture
def tiny_recipe(small_data, tiny_backbone):
    """Build a recipe of 4 epochs of 7 steps on the small data; takes overrides."""

    def build(**overrides):
        fields = {
            "backbone.name": tiny_backbone,
            "backbone.embedding_size": 16,
            "backbone.dropout": 0.2,
            "head.sample_rate": 0.7,
            "data.path": str(small_data),
            "data.workers": 0,
            "training.epochs": 4,
            "training.batch_size": 4,
            "training.checkpoint_every": 3,
            "validation.sets": ["tiny"],
            "validation.every": 5,
            "log.every": 2,
        } | overrides
        sections = {}
        for name, value in fields.items():
            section, key = name.split(".")
            sections.setdefault(section, {})[key] = value
        return recipe_from_dict(sections)

    return build


def _golden_tensor(key, shape):
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    draw = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        draw = 1 + 0.1 * np.abs(draw)
    elif key.endswith(("running_mean", "bias")):
        draw = 0.1 * draw
    elif len(shape) == 1 and "prelu" in key:
        draw = 0.25 + 0.05 * draw
    elif len(shape) == 1:
        draw = 1 + 0.1 * draw
    else:
        draw = draw / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(draw, np.float32))


@pytest.fixture(scope="session")
def golden_tensor():
    """The rule, a function of key and shape, by which the reference networks were filled; it keeps the scale."""
    return _golden_tensor


@pytest.fixture(scope="session")
def scaled_backbone():
    """Build a network in eval mode whose weights keep the scale: with new ones, deep networks overflow in this mode."""

    def build(name, **options):
        network = create_backbone(name, **options).eval()
        network.load_state_dict({key: _golden_tensor(key, value.shape) for key, value in network.state_dict().items()})
        return network

    return build
