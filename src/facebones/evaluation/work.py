"""What every command takes that measures trained backbones on images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from facebones.data.preprocessing import Preprocessing
from facebones.statistics.bootstrap import REPLICATES


@dataclass(frozen=True, kw_only=True)
class Work:
    """The models, how they are run, and the bootstrap; what they are measured on is added by each protocol.

    Attributes:
        checkpoints: name -> a run's folder, a file of weights, or an ONNX file.
        output: folder for what the protocol writes; None writes nothing.
        backbone: its name, where a single file does not say it.
        preprocessing: of files that others made.
        batch_size: images a forward pass.
        workers: threads that read images; as many as there are cores by default.
        device: "auto", "cpu", "cuda", ...
        runtime: as in `runtime_choice.with_runtime`.
        replicates: of the bootstrap.
        seed: of the bootstrap.
    """

    checkpoints: Mapping[str, Path]
    output: Path | None = None
    backbone: str | None = None
    preprocessing: Preprocessing | None = None
    batch_size: int = 128
    workers: int | None = None
    device: str = "auto"
    runtime: str | None = None
    replicates: int = REPLICATES
    seed: int = 0
