"""Models of the Hugging Face Hub: `hf:owner/name@revision` becomes a file of weights on this machine.

This is the one place where such a name is resolved; all that opens models calls `local_model` first. Only
config.json, model.safetensors and the thresholds that config.json names are fetched, all of one commit.
"""

from pathlib import Path

from facebones.errors import CheckpointError
from facebones.system.hub import download, is_hub_address, parse_address, pinned


def local_model(model: Path | str) -> Path:
    """The model's file in the Hub's cache if it is named by an address of the Hub, else its path as it is.

    A path that begins with "hf:" is written "./hf:...".

    Raises:
        CheckpointError: no such repository, no access, not a facebones model, or damaged.
        RunError: the Hub cannot be reached, or the download was cut short.
        ConfigError: no address, or `huggingface_hub` is not installed.

    >>> local_model("runs/mbf")
    PosixPath('runs/mbf')
    """
    if not is_hub_address(model):
        return Path(model)
    from facebones.backbones.hub_config import CALIBRATION, CONFIG, LARGEST_CONFIG, WEIGHTS, StatedFile, read_config

    address = parse_address(model)
    config_path = download(address, CONFIG, most=LARGEST_CONFIG)
    address = pinned(address, config_path)
    try:
        config = read_config(config_path)
    except CheckpointError as error:
        raise CheckpointError(f"{model}: {str(error).removeprefix(f'{config_path}: ')}") from error
    weights = download(address, WEIGHTS, most=config.weights.size, size=config.weights.size)
    if config.calibration is not None:
        wanted = config.calibration
        found = download(address, CALIBRATION, most=wanted.size, size=wanted.size)
        if StatedFile.of(found) != wanted:
            raise CheckpointError(f"{address}: {CALIBRATION} is not the file that {CONFIG} names; fetch it again")
    return weights
