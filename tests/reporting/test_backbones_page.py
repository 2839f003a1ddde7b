"""The generated page is the one in docs, and what it says of the study holds."""

from pathlib import Path

import pytest

from facebones.backbones import create_backbone, timm_models
from facebones.backbones.layers import GroupedConv2d
from facebones.reporting.backbones_page import STUDY_TABLE, backbones_page

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
NOT_REPRODUCED = {"sfn0_5", "sfn1_0", "sfn1_5", "sfn2_0"}


def test_the_page_in_docs_is_up_to_date():
    page = backbones_page()
    assert page == PAGE.read_text(), "run: facebones backbones --markdown > docs/backbones.md"
    assert "**10 of 14 rows are reproduced.**" in page
    assert page.count("swapped with") == 2
    assert page.count("not the paper's network") == 10


def ptflops_gflops(name):
    """Twice the count of ptflops, as the study counted; what it prints of operators it passes over is not wanted."""
    timm_models.import_timm()  # ptflops asks for torchvision
    from ptflops import get_model_complexity_info
    from ptflops.pytorch_ops import conv_flops_counter_hook

    counted, _ = get_model_complexity_info(
        create_backbone(name), (3, 112, 112), as_strings=False, print_per_layer_stat=False, verbose=False,
        backend="pytorch", custom_modules_hooks={GroupedConv2d: conv_flops_counter_hook},
    )  # fmt: skip
    return 2 * counted / 1e9


@pytest.mark.parametrize(("name", "gflops"), [(name, gflops) for name, gflops, _ in STUDY_TABLE])
def test_the_study_counted_gflops_with_ptflops(name, gflops):
    # Half a digit of the last printed one, and no more: the study rounded.
    assert (abs(ptflops_gflops(name) - gflops) < 0.00055) == (name not in NOT_REPRODUCED)
