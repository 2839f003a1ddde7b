"""How many rows of a large matrix are worked on at a time, so that what is needed for a moment stays small."""

import torch

# Of 512 numbers each: 4 MiB, and 128 MiB where each block costs launches of kernels.
CPU_ROWS, ACCELERATOR_ROWS = 2048, 65_536


def block_rows(device: torch.device) -> int:
    """Rows of a block on a device."""
    return CPU_ROWS if device.type == "cpu" else ACCELERATOR_ROWS
