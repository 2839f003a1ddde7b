"""From uint8 pixels to what a backbone takes: the one place where values are scaled and images mirrored."""

import torch


def to_network_input(
    images_u8_BHWC: torch.Tensor,
    channels_last: bool = False,
    mirror_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Turn RGB images into network input, on the device where they are.

    Args:
        images_u8_BHWC: (B, H, W, 3) uint8.
        channels_last: give the result torch's channels-last memory format; the values are the same.
        mirror_B: (B,) bool, which images to flip left to right; None flips none.

    Returns:
        (B, 3, H, W) float32, x / 127.5 - 1, so from -1 to 1. The input is not written to.

    Raises:
        ValueError: the images have another type or shape.
    """
    if images_u8_BHWC.dtype != torch.uint8 or images_u8_BHWC.ndim != 4 or images_u8_BHWC.shape[3] != 3:
        found = f"{images_u8_BHWC.dtype} of shape {tuple(images_u8_BHWC.shape)}"
        raise ValueError(f"images are {found}; give torch.uint8 of shape (B, H, W, 3)")
    images = images_u8_BHWC.permute(0, 3, 1, 2)
    if mirror_B is not None:
        images = torch.where(mirror_B[:, None, None, None], images.flip(3), images)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return images.to(torch.float32, memory_format=memory_format).div_(127.5).sub_(1.0)
