"""From pixels to network input: what is mirrored, and that nothing else changes."""

import pytest
import torch

from facebones.data.preprocessing import to_network_input


@pytest.mark.parametrize("shape", [(5, 112, 112, 3), (4, 9, 7, 3), (3, 4, 1, 3)])
@pytest.mark.parametrize("columns_first", [False, True])
def test_mirrored_images_are_those_asked_for_and_the_others_stay(shape, columns_first):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    images = images.transpose(1, 2) if columns_first else images
    before, mirror = images.clone(), torch.arange(len(images)) % 2 == 1
    expected = torch.where(mirror[:, None, None, None], images.flip(2), images)
    assert torch.equal(to_network_input(images, mirror_B=mirror), to_network_input(expected))
    assert torch.equal(images, before)
