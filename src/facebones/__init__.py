"""facebones: train and compare face-recognition backbones under one fair recipe.

The public functions are imported at their first use, so that `import facebones` needs no torch. `docs/api.md` describes
them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from facebones.backbones import create_backbone as create_backbone
    from facebones.backbones import list_backbones as list_backbones
    from facebones.backbones import register_backbone as register_backbone
    from facebones.data.training_set import register_data_format as register_data_format
    from facebones.datatools.detector_file import download_detector as download_detector
    from facebones.evaluation.calibrate import calibrate as calibrate
    from facebones.evaluation.match import match_photos as match_photos
    from facebones.evaluation.match import search_photos as search_photos
    from facebones.evaluation.models import load_model as load_model
    from facebones.evaluation.overlap import find_overlap as find_overlap
    from facebones.evaluation.photos import embed_photos as embed_photos
    from facebones.evaluation.protocol import register_protocol as register_protocol
    from facebones.evaluation.run import evaluate as evaluate
    from facebones.exporting import export as export
    from facebones.heads.registry import register_head as register_head
    from facebones.profiling.profile import profile as profile
    from facebones.profiling.published import costs as costs
    from facebones.publishing.push import push as push
    from facebones.recipe import load_recipe as load_recipe
    from facebones.reporting.load import load_results as load_results
    from facebones.study.compare import compare as compare
    from facebones.training.callbacks import register_callback as register_callback
    from facebones.training.run import resume as resume
    from facebones.training.run import train as train

__version__ = "0.2.0"

# Each public name, and the module that defines it.
_API = {
    "calibrate": "facebones.evaluation.calibrate",
    "compare": "facebones.study.compare",
    "costs": "facebones.profiling.published",
    "create_backbone": "facebones.backbones",
    "download_detector": "facebones.datatools.detector_file",
    "embed_photos": "facebones.evaluation.photos",
    "evaluate": "facebones.evaluation.run",
    "export": "facebones.exporting",
    "find_overlap": "facebones.evaluation.overlap",
    "list_backbones": "facebones.backbones",
    "load_model": "facebones.evaluation.models",
    "load_recipe": "facebones.recipe",
    "load_results": "facebones.reporting.load",
    "match_photos": "facebones.evaluation.match",
    "profile": "facebones.profiling.profile",
    "push": "facebones.publishing.push",
    "register_backbone": "facebones.backbones",
    "register_callback": "facebones.training.callbacks",
    "register_data_format": "facebones.data.training_set",
    "register_head": "facebones.heads.registry",
    "register_protocol": "facebones.evaluation.protocol",
    "resume": "facebones.training.run",
    "search_photos": "facebones.evaluation.match",
    "train": "facebones.training.run",
}
__all__ = ["__version__", *_API]  # noqa: PLE0604 (strings all the same)


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module 'facebones' has no attribute '{name}'")
    return getattr(import_module(_API[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
