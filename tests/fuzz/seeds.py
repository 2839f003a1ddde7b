"""Small sound files of each kind, made by code: what the fuzzer mutates."""

import io
import json
import pickle
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch import nn

from facebones.backbones import Backbone, list_backbones, register_backbone
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import Header, pack

for _folder in ("reporting", "system", "training"):  # as pytest's `pythonpath` does, for scripts
    sys.path.append(str(Path(__file__).parents[1] / _folder))

Files = Mapping[str, bytes]
TINY = "tiny_for_fuzzing"


class Tiny(Backbone):
    """A network of 100 numbers."""

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.conv = nn.Conv2d(3, 2, 7, 56)
        self.norm = nn.BatchNorm2d(2)
        self.linear = nn.Linear(8, embedding_size)

    def forward(self, x_B3HW: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(self.conv(x_B3HW)).flatten(1))


def register_tiny() -> None:
    """Register the network of the seeds, once."""
    if TINY not in list_backbones():
        register_backbone()(tiny_for_fuzzing)


def tiny_for_fuzzing(embedding_size: int) -> Tiny:
    """A network for the fuzzer."""
    return Tiny(embedding_size)


def in_folder(make: Callable[[Path], object]) -> dict[str, bytes]:
    """The files that a function writes into an empty folder, which becomes the working folder."""
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        return {
            str(path.relative_to(name)): path.read_bytes()
            for path in sorted(Path(name).rglob("*"))
            if path.is_file() and path.name != ".lock"
        }


def image(ending: str = ".jpg", size: tuple[int, int] = (12, 12), number: int = 0, *options: int) -> bytes:
    """A small picture in a format of OpenCV."""
    pixels = np.random.default_rng(number).integers(0, 255, (2, 2, 3), dtype=np.uint8)
    return cv2.imencode(ending, cv2.resize(pixels, size), list(options))[1].tobytes()


# ----------------------------------------------------------------------------------------------------------- data


def records() -> list[Files]:
    """An InsightFace folder with identity records; plain records; several labels, and a record of several parts."""

    def write(path: Path, held: list[tuple[int, bytes]], index: bool = True) -> None:
        with RecordWriter(path) as writer:
            for key, record in held:
                writer.write(key, record)
        if not index:
            path.with_suffix(".idx").unlink()

    pictures = [pack(Header(float(key // 3), key), image(number=key)) for key in range(1, 6)]

    def insightface(folder: Path) -> None:
        held = [*enumerate(pictures, 1), (6, pack(Header((1.0, 3.0), 6))), (7, pack(Header((3.0, 6.0), 7)))]
        write(folder / "train.rec", [(0, pack(Header((6.0, 8.0), 0))), *held])
        (folder / "property").write_text("2,112,112\n")

    def plain(folder: Path) -> None:
        magic = (0xCED7230A).to_bytes(4, "little")
        held = [*pictures[:2], pack(Header((1.0, 0.5, 2.0), 3), image(".png")), pack(Header(0.0, 4), magic * 3)]
        write(folder / "train.rec", list(enumerate(held, 1)), index=False)

    return [in_folder(insightface), in_folder(plain)]


def lmdb_sets() -> list[Files]:
    """LMDB databases in every layout: packed by MessagePack and pickle, numbered pairs, and images by path and list."""
    import lmdb
    import msgpack

    def database(entries: Mapping[bytes, bytes], subdir: bool = True) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            place = str(folder if subdir else folder / "a.lmdb")
            with lmdb.open(place, subdir=subdir, map_size=2**20) as opened, opened.begin(write=True) as writing:
                for key, value in entries.items():
                    writing.put(key, value)
            for lock in (*folder.glob("lock.mdb"), *folder.glob("*-lock")):
                lock.unlink()

        return make

    pictures = [image(number=number) for number in range(4)]
    large = image(".bmp", (40, 30))  # on pages of its own
    packed = {str(place).encode(): (picture, place // 2) for place, picture in enumerate([*pictures, large, large])}

    def by(dumps: Callable[[object], bytes], made: Mapping[bytes, object] = packed) -> dict[bytes, bytes]:
        about = {b"__len__": len(made), b"__keys__": list(made)}
        return {key: dumps(value) for key, value in {**made, **about}.items()}

    named = {
        str(place).encode(): (picture, b"features", f"person {place % 2}") for place, picture in enumerate(pictures)
    }
    arrays = {
        str(place).encode(): (np.frombuffer(picture, np.uint8), np.int64(place))
        for place, picture in enumerate(pictures)
    }
    pairs = {b"num-samples": b"4"}
    for place, picture in enumerate(pictures, 1):
        pairs |= {b"image-%09d" % place: picture, b"label-%09d" % place: b"%d" % (place % 2)}
    paths = {b"ann/%d.jpg" % place: picture for place, picture in enumerate(pictures[:2])}
    paths |= {b"bo/%d.jpg" % place: picture for place, picture in enumerate(pictures[2:])}
    listed = {"labels.txt": b"ann/0.jpg 3\nann/1.jpg 3\nbo/0.jpg\t4\n"}
    made = [
        database(by(msgpack.dumps), subdir=False),
        database(by(pickle.dumps)),
        database(by(lambda value: pickle.dumps(value, 2), arrays)),
        database(by(msgpack.dumps, named)),
        database(pairs),
        database(paths),
    ]
    return [*map(in_folder, made), {**in_folder(made[-1]), **listed}]


def parquet_sets() -> list[Files]:
    """Parquet files as `datasets` and pandas write them: structs, bytes, codecs, dictionaries, two kinds of pages."""
    import pyarrow as arrow
    from pyarrow import parquet

    pictures = [image(number=number) for number in range(6)]
    structs = [{"bytes": picture, "path": f"{place}.jpg"} for place, picture in enumerate(pictures)]
    kinds = {
        "struct": {"image": structs, "label": [0, 0, 1, 1, 2, 2]},
        "bytes": {"img": [*pictures[:5], None], "identity": ["ann", "ann", "bo", "bo", "cy", "cy"]},
    }
    settings = [
        {"compression": "snappy", "row_group_size": 4},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "zstd", "data_page_size": 900, "write_page_index": True},
    ]

    def file(columns: Mapping[str, list[object]], **options: object) -> bytes:
        content = io.BytesIO()
        parquet.write_table(arrow.table(dict(columns)), content, **options)
        return content.getvalue()

    files = [file(columns, **options) for columns in kinds.values() for options in settings]
    shards = {f"train-{place}.parquet": content for place, content in enumerate(files[:2])}
    return [*({"a.parquet": content} for content in files), {**shards, "test-0.parquet": files[0]}]


def pair_bins() -> list[Files]:
    """Verification sets of every form: protocols, lists and arrays, encoded and decoded."""
    one, other = image(), image(number=1)
    arrays = [np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)]
    contents = {
        "lists": ([one, other], [True]),
        "arrays": ([np.array(part) for part in arrays], np.array([True])),
        "objects": (np.array([one, other], dtype=object), [1]),
        "pixels": (np.zeros((2, 8, 8, 3), np.uint8), np.array([0])),
        "files": ([io.BytesIO(one), io.BytesIO(other)], [np.bool_(True)]),
        "bytearrays": ([bytearray(one), bytearray(other)], (1.0,)),
    }
    return [
        {"set.bin": pickle.dumps(content, protocol)}
        for name, content in contents.items()
        for protocol in (0, 2, 4, 5)
        if protocol or name != "files"
    ]


def groups() -> list[Files]:
    """Groups of people and of images."""
    texts = (
        'person,sex,age\nAnn,f,old\n"Bo, Li",m,young\n',
        "image,camera\n1.jpg,door\n2.jpg,\n3.jpg,phone\n",
        'image;camera\n1.jpg;"door; front"\n2.jpg;\n3.jpg;phone\n',
    )
    return [{"groups.csv": text.encode()} for text in texts]


def pair_lists() -> list[Files]:
    """Lists of LFW and of names with a mark, beside their images."""
    names = ("Ann/Ann_0001.jpg", "Ann/Ann_0012.jpg", "Bo_Li/Bo_Li_0001.jpg")
    pictures = {name: image(number=number) for number, name in enumerate(names)}
    texts = [
        "a,b,label\n{0},{1},1\n{0},{2},0\n",
        "1 {0} {1}\n1 {0} {1}\n-1 {0} {2}\n",
        '"{0}";"{1}";True\n"{0}";"{1}";True\n"{0}";"{2}";False\n',
    ]
    repeated = [
        "10\t1\n" + "Ann\t1\t12\n" * 10 + "Ann\t1\tBo_Li\t1\n" * 10,
        *(text + text.split("\n", 1)[1] * 9 for text in texts),
    ]
    return [{"pairs.txt": text.format(*names).encode(), **pictures} for text in repeated]


def ijb() -> list[Files]:
    """The lists of IJB-C, of four images."""
    points = "1.5 2.5 3.5 4.5 5.5 6.5 7.5 8.5 9.5 10.5"
    lists = {
        "name_5pts_score.txt": "".join(f"{name}.jpg {points} 0.9\n" for name in "abcd"),
        "face_tid_mid.txt": "a.jpg 10 1\nb.jpg 10 2\nc.jpg 7 2\nd.jpg 30 5\n",
        "template_pair_label.txt": "10 7 1\n7 30 0\n10 30 0\n",
        "1N_gallery_G1.csv": "TEMPLATE_ID,SUBJECT_ID\n10,1\n",
        "1N_gallery_G2.csv": "TEMPLATE_ID,SUBJECT_ID\n30,2\n",
        "1N_probe_mixed.csv": "TEMPLATE_ID,SUBJECT_ID\n7,1\n",
    }
    return [{f"meta/ijbc_{name}": text.encode() for name, text in lists.items()}]


def arrays() -> list[Files]:
    """Scores, a ROC, and scores of pairs."""
    from facebones.reporting.evaluations import CURVE_ARRAYS, CURVE_ENDING

    def npz(packed: bool, **held: np.ndarray) -> bytes:
        content = io.BytesIO()
        (np.savez_compressed if packed else np.savez)(content, **held)
        return content.getvalue()

    scores = io.BytesIO()
    np.save(scores, np.array([0.5, 0.25, -1.0], np.float32))
    pairs = {"distance": np.array([0.1, 2.0, 1.0, 0.2]), "is_same": np.array([True, False, True, True])}
    pairs["images_sha256"] = np.array("00" * 32)
    values = [np.array([0, 0.5, 1]), np.array([0, 0.75, 1]), np.array([2, 1, 0.0]), np.array(4), np.array(6)]
    curve = npz(False, **dict(zip(CURVE_ARRAYS, values, strict=True)))
    return [
        {"scores.npy": scores.getvalue(), "pairs.npz": npz(packed, **pairs), f"a{CURVE_ENDING}": curve}
        for packed in (0, 1)
    ]


def gallery() -> list[Files]:
    """Embeddings of photos."""
    rows = {
        "path": np.array(["a.jpg", "b/c.jpg"]),
        "box": np.array([[1, 2, 30, 40], [-5, 0.5, 60, 60]], np.float32),
        "score": np.array([0.75, np.nan], np.float32),
        "faces": np.array([1, 2], np.int32),
        "embedding": np.array([[0.6, 0.8, 0], [0, -1, 0]], np.float32),
        "settings": np.array('{"weights_sha256": "00", "flip": true}'),
    }
    found = []
    for save in (np.savez, np.savez_compressed):
        save(content := io.BytesIO(), **rows)
        found.append({"photos.npz": content.getvalue()})
    return found


def landmarks() -> list[Files]:
    """Tables of five and of 68 points, and one with decimal commas."""
    five, many = (",".join(f"{k + 1}.5" for k in range(2 * count)) for count in (5, 68))
    texts = [f"path,{','.join('x' * 10)}\na.jpg,{five}\nb/c.jpg,{five}\n", f"a.jpg,{many}\n", f'"a b.jpg", {five}\n']
    texts.append(texts[0].replace(",", ";").replace(".5", ",5"))
    return [{"landmarks.csv": text.encode()} for text in texts]


def logs() -> list[Files]:
    """A log of arcface_torch."""
    start = "Training: 2022-02-17 20:06:49,083-"
    speed = f"{start}Speed 3123.45 samples/sec   Loss 12.3   LearningRate 0.02   Epoch: 3   Global Step: %d   "
    lines = [
        f"{start}: num_epoch                20",
        *(f"{speed % step}Fp16 Grad Scale: 65536   Required: 12 hours" for step in (50, 100)),
    ]
    lines += [f"{start}[lfw][100]XNorm: 22.1", f"{start}[lfw][100]Accuracy-Flip: 0.99550+-0.00350"]
    lines += [f"{start}[lfw][100]Accuracy-Highest: 0.99567"]
    text = "\n".join(lines) + "\n"
    return [{"training.log": text.encode()}, {"training.log": text.encode("utf-16")}]


def images() -> list[Files]:
    """Images of each format that is read, in a folder of one person each."""
    jpeg = image(".jpg", (16, 16), 0, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    grey = cv2.imencode(".png", np.arange(64, dtype=np.uint8).reshape(8, 8))[1].tobytes()
    deep = cv2.imencode(".png", np.full((4, 4, 3), 40_000, np.uint16))[1].tobytes()
    clear = cv2.imencode(".png", np.zeros((4, 4, 4), np.uint8))[1].tobytes()
    lossless = image(".webp", (9, 7), 1, cv2.IMWRITE_WEBP_QUALITY, 101)
    held = [image(".jpg"), jpeg, image(".png"), grey, deep, clear, image(".bmp"), image(".webp"), lossless]
    endings = [".jpg", ".jpg", ".png", ".png", ".png", ".png", ".bmp", ".webp", ".webp"]
    return [{f"a/1{ending}": content} for ending, content in zip(endings, held, strict=True)]


# ---------------------------------------------------------------------------------------------------------- weights


def state(size: int = 4) -> dict[str, torch.Tensor]:
    """The state dict of the tiny network."""
    torch.manual_seed(0)
    return Tiny(size).state_dict()


def checkpoints() -> list[Files]:
    """Files of torch.save: bare, wrapped and of an own run, as zip archives and in the older form."""
    weights = state()
    own = {"backbone": weights, "recipe": {"backbone": {"name": TINY, "embedding_size": 4}, "data": {"path": "a"}}}
    wrapped = {
        "epoch": 3,
        "models": [{"net": {f"module.{name}": tensor for name, tensor in weights.items()}}],
        "half": torch.ones(2).half(),
    }

    def saved(content: object, is_zip: bool) -> bytes:
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=is_zip)
        return file.getvalue()

    both = [{"a.pt": saved(content, True)} for content in (weights, own, wrapped)]
    return [*both, *({"a.pth": saved(content, False)} for content in (weights, own))]


def safetensors() -> list[Files]:
    """A model of a run with its card, and a bare one."""
    card = {"facebones": json.dumps({"backbone": TINY, "embedding_size": 4, "training_data": "a"})}
    return [{"model.safetensors": save_safetensors(state(), metadata)} for metadata in (card, None)]


def hub_config() -> list[Files]:
    """What `facebones push` writes for a model, with thresholds and without."""
    from facebones.backbones.hub_config import HubConfig, StatedFile

    weights = safetensors()[0]["model.safetensors"]
    count = sum(parameter.numel() for parameter in Tiny(4).parameters())
    both = (StatedFile.of_bytes(b"{}"), None)
    stated = [
        HubConfig(
            backbone=TINY,
            embedding_size=4,
            parameters=count,
            weights=StatedFile.of_bytes(weights),
            calibration=thresholds,
        )
        for thresholds in both
    ]
    return [
        {"model.safetensors": weights, "config.json": json.dumps(one.to_json({"macs": 7}), indent=2).encode()}
        for one in stated
    ]


def keras() -> list[Files]:
    """Layers of Keras: those that a GhostFaceNet ends with, and a whole model of many."""
    import h5py

    def file(layers: Iterable[str], inside: str) -> bytes:
        content = io.BytesIO()
        with h5py.File(content, "w") as whole:
            for layer in layers:
                whole[f"{inside}{layer}/{layer}/kernel:0"] = np.ones((1, 1, 2, 3), "f4")
                whole[f"{inside}{layer}/{layer}/bias:0"] = np.zeros(3, "f4")
        return content.getvalue()

    head = ("GDC_dw", "GDC_batchnorm", "GDC_conv", "pre_embedding")
    many = [f"conv2d_{number}" for number in range(20)]
    return [{"a.h5": file(head, "")}, {"a.h5": file([*head, "stack1_down_bn", *many], "model_weights/")}]


def onnx_files() -> list[Files]:
    """A graph that scales pixels, one with a convolution, and one that takes channels last."""
    from onnx import TensorProto, helper, numpy_helper

    def file(nodes: list[object], held: Mapping[str, np.ndarray], shape: tuple[object, ...]) -> bytes:
        given = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
        found = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3])
        tensors = [numpy_helper.from_array(value, name) for name, value in held.items()]
        graph = helper.make_graph(nodes, "graph", [given], [found], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, {"backbone": TINY, "facebones_version": "0.2"})
        return model.SerializeToString()

    axes = np.array([2, 3])
    scaled = [
        helper.make_node("Sub", ["input", "mean"], ["a"]),
        helper.make_node("Mul", ["a", "scale"], ["b"]),
        helper.make_node("ReduceMean", ["b", "axes"], ["embedding"], keepdims=0),
    ]
    numbers = {"mean": np.float32([127.5]), "scale": np.float32([1 / 127.5]), "axes": axes}
    layers = [
        helper.make_node("Conv", ["input", "weight"], ["a"], strides=[56, 56]),
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "linear"], ["embedding"]),
    ]
    weights = {"weight": np.ones((2, 3, 7, 7), np.float32), "linear": np.ones((8, 3), np.float32)}
    last = [
        helper.make_node("Transpose", ["input"], ["a"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["a", "axes"], ["embedding"], keepdims=0),
    ]
    return [
        {"a.onnx": file(scaled, numbers, ("batch", 3, 112, 112))},
        {"a.onnx": file(layers, weights, (1, 3, 112, 112))},
        {"a.onnx": file(last, {"axes": axes}, ("batch", 112, 112, 3))},
    ]


def sharded() -> list[Files]:
    """A checkpoint that two processes have written."""
    from shared_states import on_each, shared_state, whole_state

    from facebones.system.sharded_checkpoint import save_sharded

    whole = whole_state(11)
    return [
        in_folder(
            lambda folder: on_each(
                2, lambda world: save_sharded(folder / "last.json", shared_state(whole, world), world)
            )
        )
    ]


def features() -> list[Files]:
    """A teacher's embeddings of five images, complete and begun, beside their data."""
    import os

    from teachers import write_teacher

    def make(folder: Path, complete: bool) -> None:
        for name, content in records()[0].items():
            (folder / "data").mkdir(exist_ok=True)
            (folder / "data" / name).write_bytes(content)
        before = Path.cwd()
        os.chdir(folder)
        try:
            write_teacher(Path(), Path("data"), size=3)
        finally:
            os.chdir(before)
        if not complete:
            record = folder / "teacher.features.json"
            record.write_text(record.read_text().replace('"complete": 5', '"complete": 0'))

    return [in_folder(lambda folder, complete=complete: make(folder, complete)) for complete in (True, False)]


# ------------------------------------------------------------------------------------------------ recipes, results


def recipes() -> list[Files]:
    """Recipes of the package."""
    return [{"recipe.yaml": path.read_bytes()} for path in _shipped("")]


def studies() -> list[Files]:
    """Studies of the package."""
    return [{"study.yaml": path.read_bytes()} for path in _shipped("studies")]


def _shipped(folder: str) -> list[Path]:
    from facebones.strict_yaml import shipped_files

    return list((shipped_files(folder) if folder else shipped_files()).values())


def run_folders() -> list[Files]:
    """A finished run, and one that was stopped."""
    from synthetic_study import make_run

    return [in_folder(lambda folder, done=done: make_run(folder, TINY, done=done)) for done in (True, False)]


def study_folders() -> list[Files]:
    """A study of two runs with its evaluations and profile, the rounds of its seeds, and an audit of overlap."""
    from synthetic_study import make_study

    def make(folder: Path) -> None:
        content = json.loads((make_study(folder, seeds=(0,)) / "study.json").read_text())
        spread = {"set": "lfw", "levels": ["a", "b"], "deviation": 0.8, "upper": 1.2, "power": 0.9, "detectable": 1.1}
        content["auto_seeds"] = [{"seeds": 3, "more": False, "why": "enough", "verdict": "enough", **spread}]
        wanted = {"difference": 1.0, "power": 0.8, "confidence": 0.8, "set": "", "most": 9, "hours": 2.0}
        content["study"]["auto_seeds"] = wanted
        (folder / "study.json").write_text(json.dumps(content))
        finding = {"kind": "person", "set": "lfw", "image": 0, "person": 3}
        found = {"set": "lfw", "images": 12, "fingerprint": "a", "found": {"identical": 0, "near": 1, "person": 1}}
        people = {"model": "m", "cut_off": 0.5, "false_rate": 0.01}
        audit = {"format": 1, "training": {"data": "faces"}, "people": people, "sets": [found], "findings": [finding]}
        (folder / "overlap.json").write_text(json.dumps(audit))

    return [in_folder(make)]


@lru_cache
def stopped_run() -> list[Files]:
    """A run that can be continued, with its data: `run` and `data`."""
    import os

    from facebones.recipe import recipe_from_dict
    from facebones.system.progress import silence
    from facebones.training.run import train

    def make(folder: Path) -> None:
        for name, content in records()[0].items():
            (folder / "data").mkdir(exist_ok=True)
            (folder / "data" / name).write_bytes(content)
        recipe = recipe_from_dict(
            {
                "backbone": {"name": TINY, "embedding_size": 4},
                "data": {"path": "data", "workers": 0},
                "training": {"epochs": 2, "batch_size": 2, "checkpoint_every": 1},
                "validation": {"sets": []},
            }
        )
        before = Path.cwd()
        os.chdir(folder)
        try:
            with silence():
                train(recipe, "run", device="cpu")
        finally:
            os.chdir(before)
        text = (folder / "run" / "config.yaml").read_text().replace(str(folder / "data"), "data")
        (folder / "run" / "config.yaml").write_text(text)
        for name in ("result.json", "model.safetensors", "model.json"):
            (folder / "run" / name).unlink()

    return [in_folder(make)]


def words(*values: float) -> bytes:
    """Numbers as float32, as headers of records hold them."""
    return struct.pack(f"<{len(values)}f", *values)


def place(files: Files, folder: Path) -> None:
    """Write an input into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
