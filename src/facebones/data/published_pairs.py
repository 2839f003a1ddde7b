"""CALFW, CPLFW and XQLFW as their authors distribute them: a list of pairs by its name, and the folder of its images.

Sources: as in `pair_lists`, which reads the lists.
"""

from dataclasses import dataclass
from pathlib import Path

from facebones.errors import DataError


@dataclass(frozen=True)
class PublishedSet:
    """A set of pairs with a list of its own.

    Attributes:
        name: of the set.
        images: folders that the paths in the list start from, beside the list; aligned images first.
    """

    name: str
    images: tuple[str, ...]


# By the name of the list, in small letters.
PUBLISHED = {
    "pairs_calfw.txt": PublishedSet(
        "calfw", ("aligned images", "images&landmarks/images&landmarks/images", "images&landmarks/images", "images")
    ),
    "pairs_cplfw.txt": PublishedSet("cplfw", ("aligned images", "images")),
    "xqlfw_pairs.txt": PublishedSet("xqlfw", ("xqlfw_aligned_112", "xqlfw", "lfw_original_imgs_min_qual0.85variant11")),
}


def published_lists(folder: Path) -> list[Path]:
    """The lists of known sets in a folder."""
    return sorted(path for path in folder.iterdir() if path.name.lower() in PUBLISHED)


def set_name(path: Path) -> str:
    """Name of the set in a file: that of a known list, or the file's name without ending.

    >>> set_name(Path("calfw/pairs_CALFW.txt")), set_name(Path("lfw.bin"))
    ('calfw', 'lfw')
    """
    known = PUBLISHED.get(path.name.lower())
    return path.stem if known is None else known.name


def image_folder(path: Path) -> Path:
    """The folder that the paths in a list start from, if none is given: that of a known set, or the list's own.

    Raises:
        DataError: a known list without its images.
    """
    known = PUBLISHED.get(path.name.lower())
    if known is None:
        return path.parent
    places = [path.parent / name for name in known.images]
    found = [place for place in places if place.is_dir()]
    if found:
        return found[0]
    from facebones.data.pair_lists import listed_images  # here: most pair sets are no lists

    if any((path.parent / name).is_file() for name in listed_images(path)):
        return path.parent
    listed = ", ".join(repr(name) for name in known.images)
    raise DataError(
        f"{path.parent}: {path.name} is here, but not its images: none of the folders {listed}; restore one, rename"
        " what it is called now, or name it by --root"
    )
