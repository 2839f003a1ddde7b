"""Training sets in Parquet, as Hugging Face's `datasets` writes them: a column of images and a column of labels."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, NamedTuple

import numpy as np

from facebones.data.mapped_file import Integers, MappedFile
from facebones.data.named_labels import LARGEST_LABEL
from facebones.data.parquet_footer import Chunk, read_chunks
from facebones.data.parquet_pages import CODECS, UNCOMPRESSED, ByteColumn, Strings, read_pages
from facebones.data.training_set import TrainingSet, register_data_format
from facebones.errors import ConfigError, DataError, counted, first_line, some
from facebones.system.files import parse_json

ENDING = ".parquet"
IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "face", "photo", "image_bytes", "bytes")
LABELS = ("label", "labels", "identity", "identity_id", "person", "person_id", "subject", "subject_id", "class", "cls")
INSIDE = "bytes"  # field of an image that is a struct
TRAINING = "train"
OTHER_SPLITS = ("test", "val", "dev", "eval")  # beginnings of the names of files
CACHED_BYTES = 2**26  # of pages, in each process
LARGE_PAGE = 2**22  # bytes
LEAST_BYTES = 8  # of the file, for each row
INFLATED, FREE_BYTES = 20, 2**24  # labels in memory, for each byte of the file


@register_data_format
class ParquetSet(TrainingSet):
    """The images of one or several Parquet files, in the order of the files' names.

    Opening it reads the footers, the labels, and the headers of the pages of images. An image is read with the page
    that holds it; some pages stay in memory.

    Args:
        path: a file, or a folder with files that end in `.parquet`, or with a folder `data` of such files.
        files: the files, if they are known.

    Raises:
        DataError: a file is missing or broken, or has no column of images, or none of labels.
        ConfigError: pyarrow is not installed.
    """

    name: ClassVar[str] = "parquet"

    @classmethod
    def find(cls, path: Path) -> bool:
        """Whether the path is a Parquet file, or a folder that holds some."""
        return bool(_files(path))

    def __init__(self, path: str | os.PathLike[str], files: Sequence[Path] = ()) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        files = self._only_training(list(files) or _files(self.path), named=bool(files))
        self.parts = [_Part(each) for each in files]
        self._refuse_other_columns()
        self._ends = np.cumsum([part.rows for part in self.parts], dtype=np.int64)
        if not self._ends[-1]:
            raise DataError(f"{path}: no row in {counted(len(files), 'Parquet file')}; restore them from their source")
        self._names = self.parts[0].names
        self.labels = self._number([part.take_labels() for part in self.parts])
        self._pages = PageCache(CACHED_BYTES)
        self._note_large_pages()

    def read(self, index: int) -> tuple[bytes, int]:
        """Read an image and its label."""
        number, row = self._place(index)
        page, inside = self.parts[number].images.page_of(row)
        image = self._pages.get((number, page), self._load_page).at(inside)
        if not image:
            raise DataError(f"{self.describe(index)}: no image in the row; restore the file from its source")
        return image, int(self.labels[index])

    def image_sizes(self) -> Mapping[str, Integers]:
        """(N,) bytes of the page that holds each image: the sizes of the images themselves are not known."""
        sizes = [np.repeat(part.images.page_sizes(), part.rows_of_pages()) for part in self.parts]
        return {"page_sizes_sha256": np.concatenate(sizes)}

    def read_ahead_some(self, indices: Integers) -> None:
        """Have the system fetch the pages of these images."""
        cuts = np.searchsorted(indices, self._ends[:-1]).tolist()
        starts = [0, *self._ends[:-1].tolist()]
        for part, start, own in zip(self.parts, starts, np.split(indices, cuts), strict=True):
            part.read_ahead(own - start)

    def read_ahead(self, first: int, last: int) -> None:
        """Have the system fetch the pages of these images."""
        self.read_ahead_some(np.arange(first, min(last, len(self))))

    def describe(self, index: int) -> str:
        """Name an image by file and row, from 0."""
        number, row = self._place(index)
        return f"{self.parts[number].file.path}, row {row}"

    def identity_name(self, label: int) -> str:
        """Name an identity by its name in the data, or by its number."""
        return str(label) if self._names is None or label >= len(self._names) else self._names[label]

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, index - (int(self._ends[part - 1]) if part else 0)

    def _load_page(self, key: tuple[int, int]) -> Strings:
        part, page = key
        return self.parts[part].images.strings(page)

    def _only_training(self, files: list[Path], named: bool) -> list[Path]:
        """The files of the split `train`, if the folder has several splits; all files that the user named."""
        training = [each for each in files if each.name.startswith(TRAINING)]
        others = [each for each in files if each.name.startswith(OTHER_SPLITS)]
        if not training or not others:
            return files
        if named:
            names = some(each.name for each in others)
            self.notes.append(f"{self.path}: {names}: named like test data, and trained on, because you named them")
            return files
        self.notes.append(f"{self.path}: {counted(len(others), 'file')} left out: {some(each.name for each in others)}")
        return [each for each in files if each not in others]

    def _note_large_pages(self) -> None:
        """Note pages that are slow to read an image from: each is inflated whole."""
        packed = [page for part in self.parts for page in part.images.packed_pages()]
        largest = max(packed, key=lambda page: page.inflated, default=None)
        if largest is not None and largest.inflated > LARGE_PAGE:
            self.notes.append(
                f"{self.path}: an image is read with its page, of up to {largest.values} images and"
                f" {largest.inflated / 2**20:.1f} MiB, which is slow in a random order: convert the set"
                f" (facebones data convert {self.path} NEW.rec), or write it in row groups of 100"
            )

    def _refuse_other_columns(self) -> None:
        first = self.parts[0]
        for part in self.parts[1:]:
            if part.has_names != first.has_names:
                kinds = [f"{each.file.path.name} has {each.label_kind}" for each in (first, part)]
                raise DataError(f"{self.path}: labels of two kinds: {', '.join(kinds)}; name the files of one set")

    def _number(self, labels: list[Any]) -> Integers:
        """One numbering over all files: numbers as they are, names in their order."""
        if not self.parts[0].has_names:
            return np.concatenate(labels)
        names = sorted({name for held, _ in labels for name in held})
        number = {name: place for place, name in enumerate(names)}
        self._names = names
        tables = [np.array([number[name] for name in held], np.int64) for held, _ in labels]
        return np.concatenate([table[places] for table, (_, places) in zip(tables, labels, strict=True)])


class PageCache:
    """The pages of images that were used lately, up to a number of bytes. Threads may share it; it is pickled empty.

    Args:
        most: bytes; the page that was used last stays, however large.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: OrderedDict[tuple[int, int], Strings] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __reduce__(self) -> tuple[type["PageCache"], tuple[int]]:
        return PageCache, (self.most,)

    def get(self, key: tuple[int, int], load: Callable[[tuple[int, int]], Strings]) -> Strings:
        """The page of this key, loaded if it is not held."""
        with self._lock:
            if (found := self._held.get(key)) is not None:
                self._held.move_to_end(key)
                return found
        found = load(key)  # without the lock: threads inflate their pages at the same time
        with self._lock:
            if key not in self._held:
                self._held[key] = found
                self._bytes += found.memory
            while self._bytes > self.most and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].memory
        return found


class _Columns(NamedTuple):
    """Where images and labels are: the name of the column of labels, and the path of the bytes of the images."""

    images: str
    labels: str


class _Part:
    """A Parquet file.

    Attributes:
        file: the file.
        rows: number of rows.
        images: the column of images.
        label_kind: type of the column of labels, in Arrow's words.
        has_names: labels are names.
        names: names of labels that are numbers, if the file says them.
    """

    def __init__(self, path: Path) -> None:
        arrow, parquet = _pyarrow(path)
        self.file = MappedFile(path)
        self._labels: Any = None
        limits = {"thrift_string_size_limit": self.file.size, "thrift_container_size_limit": max(self.file.size, 1000)}
        try:
            with parquet.ParquetFile(path, **limits) as opened:
                self._read(arrow, opened)
        except (arrow.ArrowException, OSError, ValueError, TypeError, OverflowError, KeyError, IndexError) as error:
            reason = first_line(error).rstrip(".")
            raise DataError(f"{path}: no sound Parquet file ({reason:.200}); restore it from its source") from error

    def take_labels(self) -> Any:
        """The labels, once: numbers (N,), or the names and for each row the place of its name."""
        labels, self._labels = self._labels, None
        return labels

    def rows_of_pages(self) -> Integers:
        """(P,) number of rows of each page of images."""
        return np.diff(self.images.ends, prepend=0)

    def read_ahead(self, rows: Integers) -> None:
        """Have the system fetch the pages of these rows."""
        used = np.unique(np.searchsorted(self.images.ends, rows, side="right"))
        pages = [self.images.pages[page] for page in used.tolist()]
        starts, sizes = (np.array([part[place] for part in pages], np.int64) for place in (1, 2))
        self.file.fetch(starts, starts + sizes)

    def _read(self, arrow: Any, opened: Any) -> None:
        columns = self._columns(arrow, opened.schema_arrow)
        images, labels = read_chunks(self.file, [columns.images, columns.labels])
        self.rows = sum(chunk.rows for chunk in images)
        if self.rows * LEAST_BYTES > self.file.size:
            self._fail(f"{self.rows} rows in {self.file.size} bytes")
        if packed := {chunk.codec for chunk in (*images, *labels)} - {*CODECS, UNCOMPRESSED}:
            raise DataError(f"{self.file.path}: compression {some(sorted(packed))}; write it with zstd, or with none")
        self.images = ByteColumn(self.file, images)
        self.names = _class_names(opened.schema_arrow.metadata or {}, columns.labels)
        self._labels = self._read_labels(arrow, opened, labels, columns.labels)

    def _columns(self, arrow: Any, schema: Any) -> _Columns:
        types = arrow.types
        fields = {field.name: field.type for field in schema}
        images = {name: _image_path(types, name, kind) for name, kind in fields.items()}
        found = {name: inside for name, inside in images.items() if inside is not None}
        labels = [name for name, kind in fields.items() if _is_label(types, kind) and name not in found]
        image = next((name for name in IMAGES if name in found), next(iter(found), "") if len(found) == 1 else "")
        label = next((name for name in LABELS if name in labels), "")
        if not label:
            whole = [name for name in labels if types.is_integer(fields[name])]
            label = whole[0] if len(whole) == 1 else ""
        for name, what, usual in (
            (image, "images (binary, or a struct with bytes)", IMAGES),
            (label, "labels", LABELS),
        ):
            if not name:
                listed = some([f"{each} ({kind!s:.40})" for each, kind in fields.items()], 6)
                raise DataError(
                    f"{self.file.path}: no column of {what} among {listed or 'no columns'}; rename it to '{usual[0]}'"
                )
        kind = fields[label]
        self.label_kind = str(kind)
        self.has_names = not types.is_integer(kind.value_type if types.is_dictionary(kind) else kind)
        return _Columns(found[image], label)

    def _read_labels(self, arrow: Any, opened: Any, chunks: list[Chunk], name: str) -> Any:
        self._check_inflated(chunks)
        column = opened.read([name], use_threads=False).column(0)
        if column.null_count:
            self._fail(f"{counted(column.null_count, 'row')} without a label in column '{name}'")
        if not self.has_names:
            numbers = column.cast(arrow.int64(), safe=True).to_numpy()
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() <= LARGEST_LABEL:
                self._fail(f"label {numbers.min() if numbers.min() < 0 else numbers.max()} in column '{name}'")
            return np.array(numbers, np.int64)
        held = column.dictionary_encode().unify_dictionaries() if len(column) else column
        parts = held.chunks if len(column) else []
        names = [str(each) for each in parts[0].dictionary.to_pylist()] if parts else []
        places = [part.indices.to_numpy(zero_copy_only=False) for part in parts]
        return names, np.concatenate([np.zeros(0, np.int64), *places]).astype(np.int64)

    def _check_inflated(self, chunks: list[Chunk]) -> None:
        """Refuse labels that take far more memory than the file: Arrow allocates what the pages claim."""
        claimed = sum(page.inflated for chunk in chunks for page in read_pages(self.file, chunk))
        if claimed > INFLATED * self.file.size + FREE_BYTES:
            self._fail(f"labels that inflate to {claimed} bytes")

    def _fail(self, reason: str) -> None:
        raise DataError(f"{self.file.path}: {reason}; restore the file from its source")


def _files(path: Path) -> list[Path]:
    """The Parquet files that a path names: itself, those in the folder, or those in its folder `data`."""
    if path.is_file():
        return [path] if path.suffix.lower() == ENDING else []
    for folder in (path, path / "data"):
        if found := sorted(_inside(folder)):
            return found
    return []


def _inside(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        for each in folder.iterdir():
            if each.suffix.lower() == ENDING and not each.name.startswith(".") and each.is_file():
                yield each


def _image_path(types: Any, name: str, kind: Any) -> str | None:
    """Path of the bytes of a column of images; None for another column."""
    if _is_binary(types, kind):
        return name
    if types.is_struct(kind) and (place := kind.get_field_index(INSIDE)) >= 0 and _is_binary(types, kind[place].type):
        return f"{name}.{INSIDE}"
    return None


def _is_binary(types: Any, kind: Any) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_label(types: Any, kind: Any) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def _class_names(about: Mapping[bytes, bytes], label: str) -> list[str] | None:
    """The names of the labels that `datasets` writes beside them; None if there are none."""
    content = about.get(b"huggingface")
    if content is None:
        return None
    try:
        names = parse_json(content)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"{path}: Parquet needs pyarrow; pip install 'facebones[parquet]'") from error
    return arrow, parquet
