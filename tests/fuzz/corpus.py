"""Every failure of a reader so far, made by code: name to the target, the input, and a part of what must be said.

python tests/fuzz/corpus.py     reads each within the limits, and prints the outcomes as JSON
"""

import base64
import io
import json
import pickle
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import seeds
import torch
from harness import run_inputs
from run import prepare
from safetensors.torch import save as save_safetensors
from targets import TARGETS

from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import FIRST, LAST, LENGTH_BITS, MAGIC, MIDDLE, Header, pack

Files = Mapping[str, bytes]
BIG = b"\x8a\x06" + (2**40).to_bytes(6, "little")  # LONG1
STOP = b"."


# ---------------------------------------------------------------------------------------------------------- pickles


def _array(shape: bytes) -> Files:
    return {
        "set.bin": b"\x80\x04cnumpy.core.numeric\n_frombuffer\n(C\x01acnumpy\ndtype\n\x8c\x02u1\x85R"
        + shape
        + b"\x8c\x01CtR."
    }


def _torch_pickle(instructions: bytes, kind: str = "pt") -> Files:
    """A checkpoint whose values are built by these instructions."""
    if kind == "pth":
        start = b"".join(pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        return {"a.pth": start + b"\x80\x02" + instructions + STOP + pickle.dumps([], 2)}
    return _archive({"archive/data.pkl": b"\x80\x02" + instructions + STOP})


def _archive(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Files:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in {**members, "archive/version": b"3\n", "archive/byteorder": b"little"}.items():
            archive.writestr(name, content)
    return {"a.pt": packed.getvalue()}


def _saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


# ----------------------------------------------------------------------------------------------------------- others


def _png(*parts: tuple[bytes, bytes, int | None]) -> Files:
    """A PNG of 4x4 with further parts, whose length may be another than they say."""
    sound = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    held = b"".join(
        (len(content) if claimed is None else claimed).to_bytes(4, "big")
        + kind
        + content
        + zlib.crc32(kind + content).to_bytes(4, "big")
        for kind, content, claimed in parts
    )
    return {"a/1.png": sound[:33] + held + sound[33:]}


def _scans(count: int) -> Files:
    """A progressive JPEG that says 8192x8192, with further scans of two bytes."""
    encoded = seeds.image(".jpg", (16, 16), 0, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    frame, last = encoded.index(b"\xff\xc2"), encoded.rindex(b"\xff\xda")
    large = encoded[: frame + 5] + struct.pack(">HH", 8192, 8192) + encoded[frame + 9 : -2]
    return {"a/1.jpg": large + encoded[last : last + 14] * count + b"\xff\xd9"}


def _records(*labels: float) -> Files:
    def make(folder: Path) -> None:
        with RecordWriter(folder / "train.rec") as writer:
            for key, label in enumerate(labels, 1):
                writer.write(key, pack(Header(label, key), seeds.image(number=key)))

    return seeds.in_folder(make)


def _parts_of_one_record(keys: int) -> Files:
    """A record of 20,000 parts, and an index in which each key is this record's."""

    def part(kind: int, payload: bytes) -> bytes:
        return struct.pack("<II", MAGIC, kind << LENGTH_BITS | len(payload)) + payload

    parts = part(FIRST, pack(Header(1.0, 1))) + part(MIDDLE, b"") * 20_000 + part(LAST, b"end.")
    return {"train.rec": parts, "train.idx": b"".join(b"%d\t0\n" % key for key in range(1, keys + 1))}


def _onnx(change: Callable[[bytes], bytes], number: int = 0) -> Files:
    return {"a.onnx": change(seeds.onnx_files()[number]["a.onnx"])}


def _odd_onnx(kind: str) -> Files:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(seeds.onnx_files()[1]["a.onnx"])
    if kind == "no input":
        del model.graph.input[:]
    elif kind == "one input of Conv":
        del model.graph.node[0].input[1:]
    elif kind == "no output of Conv":
        del model.graph.node[0].output[:]
    elif kind == "shape of a shape":  # data propagation divides by what the file says
        zero = numpy_helper.from_array(np.array([0, -1, -1, 3]), "zero")
        model.graph.initializer.append(zero)
        model.graph.node.insert(0, helper.make_node("Reshape", ["input", "zero"], ["odd"]))
    elif kind == "huge weight":
        weight = TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[2**40, 2**20])
        model.graph.initializer.append(weight)
    elif kind == "one function twice":
        given = onnx.load_from_string(seeds.onnx_files()[0]["a.onnx"]).graph.node[0]
        model.functions.extend([helper.make_function("", "f", list(given.input), list(given.output), [given], [])] * 2)
    elif kind == "100 dimensions":  # which NumPy cannot hold
        model = onnx.load_from_string(seeds.onnx_files()[0]["a.onnx"])
        (mean,) = [tensor for tensor in model.graph.initializer if tensor.name == "mean"]
        mean.dims[:] = [1] * 100
    return {"a.onnx": model.SerializeToString()}


def _changed(make: Callable[[], list[Files]], name: str, change: Callable[[bytes], bytes]) -> Files:
    files = dict(make()[0])
    return {**files, name: change(files[name])}


def _forged(change: Callable[[dict], object]) -> Files:
    """A run whose last checkpoint holds something else."""
    files = dict(seeds.stopped_run()[0])
    state = torch.load(io.BytesIO(files["run/checkpoints/last.pt"]), weights_only=True)
    change(state)
    return {**files, "run/checkpoints/last.pt": _saved(state)}


def _nested(depth: int, copies: int = 1) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value] * copies
    return value


def _with(**values: object) -> Callable[[dict], object]:
    return lambda state: state.update(values)


def _in_recipe(section: str, field: str, value: object) -> Callable[[dict], object]:
    return lambda state: state["recipe"][section].__setitem__(field, value)


_LONG_NAME = b"a" * 5000


def _lmdb(change: Callable[[bytearray, int], object]) -> Files:
    """A sound database of one leaf page of images, changed; the function gets the leaf's offset."""
    (content,) = seeds.lmdb_sets()[0].values()
    newest = max((0, 4096), key=lambda page: struct.unpack_from("<Q", content, page + 16 + 128)[0])
    leaf = struct.unpack_from("<Q", content, newest + 16 + 24 + 48 + 40)[0] * 4096
    changed = bytearray(content)
    change(changed, leaf)
    return {"a.lmdb": bytes(changed)}


def _repeat_nodes(content: bytearray, leaf: int) -> None:
    """Every entry of the leaf becomes the first one: a value many times."""
    count = (struct.unpack_from("<H", content, leaf + 12)[0] - 16) // 2
    content[leaf + 16 : leaf + 16 + 2 * count] = content[leaf + 16 : leaf + 18] * count


def _loop(content: bytearray, leaf: int) -> None:
    """The leaf becomes a branch whose only child is itself."""
    number = leaf // 4096
    struct.pack_into("<HHH", content, leaf + 10, 1, 18, 4000)
    struct.pack_into("<HHHH", content, leaf + 16, 32, 0, 0, 0)
    struct.pack_into("<HHHH", content, leaf + 32, number & 0xFFFF, number >> 16, 0, 0)


def _parquet(images: list[bytes], **options: object) -> Files:
    import pyarrow as arrow
    from pyarrow import parquet

    content = io.BytesIO()
    table = arrow.table({"image": images, "label": [number % 2 for number in range(len(images))]})
    parquet.write_table(table, content, **options)
    return {"a.parquet": content.getvalue()}


# A file whose footer has columns on which pyarrow 26.0.1 ends the process (SIGABRT) when their metadata are read.
PARQUET_ABORT = (
    "eNqTlBGbwi/qJcbAICnWZMEgKSO0SUDUA8yVYRBlkbQxZZBgK07OSM1NFGVhEOVRZZZgzsxNB7GYJDgyU1LzSjJLKlUZfGQYGBjEeCRl"
    "JHXUGGREeSRNGdgEJMFqRXnEeMSaLMWu8atN4VfjkDFj0rjM+v/G/wcMAl5unm4MjIwMDIxAyPD/NoMzAxMjCIBIJiBoYmEGUawsLMws"
    "bKxsbGDMzskBxOxsbBzcHJxcIABk8XBz8YA4IEPAWoG6mJlZudjZ2LlIBv8PMAhyMPAw8DAzKjEwCTIyCzL+P8LAD3QnK9h5QMdCACMT"
    "MwsrGzvQGdxABVsFgM5nZmZiYWYFuhgoWwuUZ2ARZBVSNHRkEw5MZFcqFDFqnLiQQ9lp40HRoIsfVIyTipo4ucTEJSSlVNXUNTS1TEzN"
    "zC0srZxdXN3cPTy9gkNCw8IjIqOSU1LT0jMys4pLSsvKKyqrmlta29o7OrsmTZ4yddr0GTNnLVq8ZOmy5StWrtq0ecvWbdt37Nx16PCR"
    "o8eOnzh56tLlK1evXb9x89bDR4+fPH32/MXLVx8/ff7y9dv3Hz9/AZ0tz8jAzAgDWP0lCPQXEygO2EH+YmQqBykQZGFVNGQTcgxkTywU"
    "VjJq5BBxmrhw40FOZeOgD6JJRRe5xFRMHqp+BHpNDuwz4jzWRJbP4B5D+OsWKPaAkccsyGDP8Mv90fVjseyP+jr/9i4WNcpVfppzvdH7"
    "g/iRSycutdYYC3/Xtv9WPS3SJnDrkzTp6U3F8bEH8/OfLH8n/K7/odzUv7ZHti49FHG07XC22PqVP+Qv5yserkh8pMqzXz8vYKr165fy"
    "n+3/35Q4TWyqZsKVqvkHIFXLj6Zq8lK11ICn6nf7hOvO3NP/wLf97/KV7Td3yM+yCd93eJWrjLck89MAq+ur/wRv297vpmYh6Hf5osN6"
    "/sl/k+v3ZP+MqjN4fjP4W8hD6fo4tz21D/cFfll0VpmBoYHBb63piSlm2x/e+H9TUJBBUkeURZRBlIkBSAgAKRtgDSHJJqnGxAUs6ido"
    "iMqJ/RIQfSbGgFzgw6sEcKlfITaHUW2TgNo9fhkzBg2m5EoJ5sS8PKxGy4BMBiZOBrF1GqIyYg/URQ0YxH5ZivGocYh9EgBWTBI8jkFB"
    "/uFWkMpI4gGjPgiYOYJAoCMEeDs6ljs6pTu6OTqmOzqng8WcnBwdfUEMZ0dHT7AAgnaEMJ1c4Xy/EKChFkCGqxtEsBxEujrCAchQp4Io"
    "97DSFPccg1SwzS6+IKcAFYWC5IH2e4DcAXaXE0yfqyvEvHQ083zB5iWFJ4OUuiK84ujIIKFQkFhUWJpaoptcUKCbWFSUX65QllpUnJmf"
    "p2BkpmegZyipA6x2QTXvKnYGhgDHIEMA33JZXg=="
)


CASES: dict[str, tuple[str, Callable[[], Files], str]] = {
    # What a database or a Parquet file could be made to do; thought of, not found.
    "database of a page within itself": ("lmdb", lambda: _lmdb(_loop), "in the tree twice"),
    "database of one value many times": ("lmdb", lambda: _lmdb(_repeat_nodes), "a value within another"),
    "Parquet of a page that inflates": (
        "parquet",
        lambda: _parquet([bytes(50_000_000)] * 2, compression="zstd", use_dictionary=False),
        "claims to inflate",
    ),
    "Parquet of one image many times": (
        "parquet",
        lambda: _parquet([seeds.image(".bmp", (200, 100))] * 7_000, compression="none", data_page_size=100),
        "7000 rows of 1 images",
    ),
    "Parquet on whose columns pyarrow aborts": (
        "parquet",
        lambda: {"a.parquet": zlib.decompress(base64.b64decode(PARQUET_ABORT))},
        "the header of a page is broken",
    ),
    # Lists within lists in a footer: Python's recursion limit, as a traceback.
    "Parquet of nested lists": (
        "parquet",
        lambda: _changed(
            seeds.parquet_sets,
            "a.parquet",
            lambda held: held[:-8] + b"\x19" * 3000 + (3000).to_bytes(4, "little") + b"PAR1",
        ),
        "a.parquet",
    ),
    "Parquet of labels that inflate": ("parquet", lambda: _parquet([b"x"] * 10**6, compression="zstd"), "rows in"),
    # A shape of texts: their product was computed, 2 GB of it; or a product of numbers of 255 bytes, for minutes.
    "pickle of a shape of texts": (
        "pair_bins",
        lambda: _array(b"\x8c\xc8" + b"A" * 200 + b"J\x80\x96\x98\x00\x86"),
        "shape that no array has",
    ),
    "pickle of a shape of huge numbers": (
        "pair_bins",
        lambda: _array(b"(\x8a\xff" + b"\x7f" * 255 + b"q\x00" + b"h\x00" * 9000 + b"t"),
        "shape that no array has",
    ),
    "pickle of a claimed length": ("pair_bins", lambda: {"set.bin": b"\x80\x04B\xff\xff\xff\x7fabc."}, "cut short"),
    "pickle of many copies": (
        "pair_bins",
        lambda: {
            "set.bin": b"\x80\x04\x8c\xff" + b"a" * 255 + b"q\x000" + b"c_codecs\nencode\nh\x00\x85R0" * 300 + b"."
        },
        "more bytes than it holds",
    ),
    "pickle that runs a program": ("pair_bins", lambda: {"set.bin": b"cos\nsystem\nS'id'\n\x85R."}, "os.system"),
    "png of a claimed length": ("images", lambda: _png((b"IDAT", b"x", 2**31 - 1)), ""),
    "png of a claimed profile": ("images", lambda: _png((b"iCCP", b"a\0\0" + zlib.compress(bytes(2**26)), None)), ""),
    "png of a claimed text": ("images", lambda: _png((b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)), 2**30)), ""),
    "png of a gigapixel": (
        "images",
        lambda: {
            "a/1.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
            + struct.pack(">IIBBBBB", 2**15, 2**15, 8, 2, 0, 0, 0)
            + bytes(40)
        },
        "",
    ),
    "jpeg of many scans": ("images", lambda: _scans(5000), ""),
    "property with a control character": ("records", lambda: {**_records(0, 1), "property": b"2,\x1f12,12\n"}, ""),
    "label of 16777215": ("records", lambda: _records(0, 1, 16777215, 1), ""),
    "label of 16777215 alone": ("records", lambda: _records(16777215), "all of one identity"),
    "label beyond float32": ("records", lambda: _records(0, 1e30), "label 1e"),
    "index of huge offsets": (
        "records",
        lambda: {**_records(0, 1), "train.idx": b"1\t99999999999999999999999\n2\t0\n"},
        "",
    ),
    "index of one record for each key": ("records", lambda: _parts_of_one_record(2000), "is that of key 1, too"),
    "checkpoint of a claimed bytearray": (
        "checkpoints",
        lambda: _torch_pickle(b"c__builtin__\nbytearray\n" + BIG + b"\x85R"),
        ".bytearray",
    ),
    "checkpoint of a claimed tensor": (
        "checkpoints",
        lambda: _torch_pickle(b"ctorch\nTensor\n" + BIG + b"\x85R"),
        "calls torch.Tensor",
    ),
    "checkpoint of a claimed storage": (
        "checkpoints",
        lambda: _torch_pickle(b"ctorch.storage\nUntypedStorage\n" + BIG + b"\x85\x81"),
        "calls torch.storage",
    ),
    "checkpoint of a call by another": (
        "checkpoints",
        lambda: _torch_pickle(
            b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nTensor\nctorch\nTensor\n" + BIG + b"\x85NtR"
        ),
        "calls torch.Tensor",
    ),
    "checkpoint of many copies": (
        "checkpoints",
        lambda: _torch_pickle(
            b"X\x00\x80\x00\x00" + b"a" * 2**15 + b"q\x00(" + b"c__builtin__\nset\nh\x00\x85R" * 2000 + b"t"
        ),
        "builds far more",
    ),
    "checkpoint of a claimed text": ("checkpoints", lambda: {"a.pth": b"X\x71\x04\x88\x58"}, "cut short"),
    "older checkpoint of a claimed storage": (
        "checkpoints",
        lambda: _torch_pickle(
            b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + BIG + b"NtQ",
            "pth",
        ),
        "larger than it is",
    ),
    "checkpoint of a number of 2000 bits": ("checkpoints", lambda: {"a.pt": _saved({"a": 2**1999})}, "2000 bits"),
    "checkpoint of expanded tensors": (
        "checkpoints",
        lambda: {"a.pt": _saved({"a": torch.zeros(1).expand(2**40)})},
        "far larger",
    ),
    "checkpoint that is compressed": (
        "checkpoints",
        lambda: _archive({"archive/data.pkl": b"\x80\x02]" + b"N0" * 2**20 + STOP}, zipfile.ZIP_DEFLATED),
        "times its bytes",
    ),
    "checkpoint with lists in each other": (
        "checkpoints",
        lambda: {"a.pt": _saved({"a": _nested(60, 2)})},
        "no state dict",
    ),
    "checkpoint whose end lacks its directory": (
        "checkpoints",
        lambda: {"a.pt": _saved(seeds.state())[::-1][:22][::-1] + bytes(9)},
        "",
    ),
    "checkpoint of several disks": (
        "checkpoints",
        lambda: {"a.pt": _saved(seeds.state()).replace(b"PK\x06\x07\0\0\0\0", b"PK\x06\x07\0\0\0\x09")},
        "",
    ),
    "checkpoint of a forged card": (
        "checkpoints",
        lambda: {
            "a.pt": _saved(
                {
                    "backbone": {},
                    "recipe": {"backbone": {"name": _nested(60, 2), "embedding_size": 4}, "data": {"path": "a"}},
                }
            )
        },
        "",
    ),
    "safetensors of a claimed header": (
        "safetensors",
        lambda: {"model.safetensors": (2**62).to_bytes(8, "little") + b"{}"},
        "no safetensors",
    ),
    "safetensors of a forged card": (
        "safetensors",
        lambda: {"model.safetensors": save_safetensors(seeds.state(), {"facebones": "[" * 10**5})},
        "",
    ),
    "onnx of names that are no UTF-8": (
        "onnx",
        lambda: _onnx(lambda held: held.replace(b"embedding", b"embeddin\xff")),
        "",
    ),
    "onnx of a dimension that is no UTF-8": (
        "onnx",
        lambda: _onnx(lambda held: held.replace(b"batch", b"batc\xff")),
        "not UTF-8",
    ),
    "onnx that is cut": ("onnx", lambda: _onnx(lambda held: held[:-9]), "no ONNX file"),
    "onnx of another wire format": ("onnx", lambda: {"a.onnx": b"\xff" * 40}, "no ONNX file"),
    **{
        f"onnx of {kind}": ("onnx", lambda kind=kind: _odd_onnx(kind), "")
        for kind in (
            *("no input", "one input of Conv", "no output of Conv", "shape of a shape", "huge weight"),
            *("one function twice", "100 dimensions"),
        )
    },
    "forged random state": (
        "resume",
        lambda: _forged(_with(rng={"cpu": torch.zeros(3)})),
        "no state of a random generator",
    ),
    "random state of a list": ("resume", lambda: _forged(_with(rng=[1])), "no state of a random generator"),
    "random state of nothing": ("resume", lambda: _forged(_with(rng={"cpu": None})), "no state of a random generator"),
    "recipe of lists in each other": (
        "resume",
        lambda: _forged(_in_recipe("training", "epochs", _nested(60, 2))),
        "so often",
    ),
    "recipe of nested lists": ("resume", lambda: _forged(_in_recipe("training", "epochs", _nested(200))), "levels"),
    "meter of nested lists": ("resume", lambda: _forged(_with(meter={"head": _nested(200)})), "levels"),
    "data of a huge number": ("resume", lambda: _forged(_with(data=2**60000)), ""),
    "environment of NaN": (
        "resume",
        lambda: _changed(
            seeds.stopped_run, "run/environment.json", lambda held: b'{"threads": 1, "a": NaN, ' + held[1:]
        ),
        "",
    ),
    "result of a number beyond floats": (
        "run_folders",
        lambda: _changed(seeds.run_folders, "result.json", lambda held: held.replace(b"0.95", b"1" + b"0" * 400)),
        "too large",
    ),
    "result of a number without decimals": (
        "run_folders",
        lambda: _changed(
            seeds.run_folders, "metrics.jsonl", lambda held: held.replace(b'"loss": 6.0', b'"loss": 1e308')
        ),
        "",
    ),
    "loss of a huge whole number": (
        "run_folders",
        lambda: _changed(
            seeds.run_folders, "metrics.jsonl", lambda held: held.replace(b'"loss": 6.0', b'"loss": 1' + b"0" * 30)
        ),
        "",
    ),
    "metrics nested without end": (
        "run_folders",
        lambda: _changed(seeds.run_folders, "metrics.jsonl", lambda held: b"[" * 10**5 + b"\n" + held),
        "not JSON",
    ),
    "study of a name that no file has": (
        "studies",
        lambda: {"study.yaml": b"recipe: " + _LONG_NAME + b"\nbackbones: [mobilefacenet]\n"},
        "unknown recipe",
    ),
    "study of a path that no file has": (
        "studies",
        lambda: {"study.yaml": b"recipe: a/" + _LONG_NAME + b"\nbackbones: [mobilefacenet]\n"},
        "no such recipe",
    ),
    "run in a folder that no file system has": (
        "study_folders",
        lambda: _changed(seeds.study_folders, "study.json", lambda held: held.replace(b'"runs/', b'"' + _LONG_NAME)),
        "",
    ),
    "metrics in a file that no file system has": (
        "study_folders",
        lambda: _changed(seeds.study_folders, "study.json", lambda held: held.replace(b"evaluation/", _LONG_NAME)),
        "",
    ),
    "recipe of a field as long as a file": (
        "recipes",
        lambda: {"recipe.yaml": b"schedule:\n  ? " + 10 * _LONG_NAME + b"\n  : 1\n"},
        "letters ...]",
    ),
    "recipe of aliases": (
        "recipes",
        lambda: {
            "recipe.yaml": b"a: &a [x, x]\n"
            + b"".join(b"%c: &%c [*%c, *%c]\n" % (k + 1, k + 1, k, k) for k in range(97, 122))
        },
        "",
    ),
    "pair list of a name that no file has": (
        "pair_lists",
        lambda: {"pairs.txt": b"1\t1\n" + _LONG_NAME + b"\t1\t2\na\t1\tb\t1\n"},
        "pairs.txt",
    ),
    "pair list that ends after a row number": (
        "pair_lists",
        lambda: {"pairs.txt": b",,label\n/"},
        "line 2: '/' is not",
    ),
    "groups in half a million columns": (
        "groups",
        lambda: {"groups.csv": b"image" + b",x" * 500_000 + b"\n1.jpg" + b",y" * 500_000},
        "500000 columns of groups",
    ),
    "array of a claimed shape": (
        "arrays",
        lambda: _changed(
            seeds.arrays,
            "scores.npy",
            lambda held: held.replace(b"(3,)", b"(2**40,)").replace(b"(3,), ", b"(99999999999,), "),
        ),
        "scores.npy",
    ),
    "array of elements without bytes": (
        "arrays",
        lambda: _changed(
            seeds.arrays, "scores.npy", lambda held: held.replace(b"<f4", b"|S0").replace(b"(3,), ", b"(-1,),")
        ),
        "scores.npy",
    ),
    "array of nested brackets": (
        "arrays",
        lambda: {"scores.npy": b"\x93NUMPY\x01\x00\xb8\x0b" + b"(" * 3000},
        "scores.npy",
    ),
    "sharded index of nested lists": ("sharded", lambda: {"last.json": b"[" * 10**5}, "last.json"),
}


def outcomes() -> dict[str, tuple[str, str]]:
    """Kind and words of each case; the inputs of one target share a child."""
    found = {}
    for target in {case[0]: None for case in CASES.values()}:
        cases = {name: make() for name, (of, make, _) in CASES.items() if of == target}
        for name, outcome in zip(cases, run_inputs(TARGETS[target].read, cases.values()), strict=True):
            found[name] = outcome.kind, outcome.words
    return found


if __name__ == "__main__":
    prepare(weights=False)
    with tempfile.TemporaryDirectory() as folder:
        json.dump(outcomes(), sys.stdout)
