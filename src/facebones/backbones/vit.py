"""Vision transformers of InsightFace's arcface_torch, trained with masked tokens (`recognition/arcface_torch`).

ViT (arXiv 2010.11929) without a class token: the embedding is computed from all 144 tokens, whose linear layer holds
half of the parameters. Attribute names are InsightFace's, so its state dicts load unchanged. The authors train with
AdamW: learning rate 1e-3, weight decay 0.1, warm-up over 10 % of 40 epochs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from facebones.backbones.base import IMAGE_SIZE, Backbone
from facebones.backbones.layers import full_precision
from facebones.backbones.registry import register_backbone

PATCH = 9  # pixels; the last 4 rows and columns of an image are in no patch
TOKENS = (IMAGE_SIZE // PATCH) ** 2
FEATURE_EPS = 2e-5  # of the batch normalisations of the embedding


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drop the branch of a sample at random, in training.

    Args:
        rate: probability of dropping.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_BND: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x_BND
        kept = x_BND.new_empty(len(x_BND), 1, 1).bernoulli_(1 - self.rate)
        return x_BND * kept / (1 - self.rate)


class Attention(nn.Module):
    """Self-attention, in float32 also under autocast."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        batch, tokens, width = x_BND.shape
        qkv = self.qkv(x_BND).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        with full_precision(x_BND.device):
            q, k, v = qkv.to(torch.promote_types(qkv.dtype, torch.float32))  # (B, heads, N, D / heads) each
            mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two linear layers with ReLU6 between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.ReLU6()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x_BND)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each after a layer normalisation and added to its input."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.drop_path(self.attn(self.norm1(x_BND)))
        return x_BND + self.drop_path(self.mlp(self.norm2(x_BND)))  # type: ignore[no-any-return]


class PatchEmbedding(nn.Module):
    """The patches of an image, row by row, as tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        return self.proj(x_B3HW).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]  # (B, N, D)


class VisionTransformer(Backbone):
    """ViT.

    Args:
        width: of a token.
        depth: blocks.
        drop_path: stochastic depth of the last block; it rises linearly from 0 at the first.
        mask_ratio: part of the tokens that are left out in training, drawn for each image; a learnt token stands in for
            them behind the last block. 0 keeps all, and the learnt token gets no gradient.
        embedding_size: D.
        dropout: probability before the last linear layer.
        heads: of the attention.
        evaluates_as: the registered network that computes the same in evaluation, if this is not it.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        drop_path: float,
        mask_ratio: float,
        embedding_size: int,
        dropout: float,
        heads: int = 8,
        evaluates_as: str = "",
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.evaluates_as = evaluates_as
        self.stage_ends = ("patch_embed", *(f"blocks.{depth * part // 4 - 1}" for part in (1, 2, 3, 4)))
        self.kept = int(TOKENS * (1 - mask_ratio))
        self.only_in_training = ("mask_token",) if self.kept < TOKENS else ()
        self.pos_embed = nn.Parameter(torch.zeros(1, TOKENS, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = PatchEmbedding(width)
        self.blocks = nn.Sequential(*(Block(width, heads, drop_path * n / (depth - 1)) for n in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(TOKENS * width, width, bias=False), nn.BatchNorm1d(width, eps=FEATURE_EPS),
            nn.Linear(width, embedding_size, bias=False), nn.BatchNorm1d(embedding_size, eps=FEATURE_EPS),
        )  # fmt: skip
        self.dropout = nn.Dropout(dropout)
        self._initialize()

    def _initialize(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x_BND = self.patch_embed(x_B3HW) + self.pos_embed
        x_BND = self._masked(x_BND) if self.training and self.kept < TOKENS else self.norm(self.blocks(x_BND))
        linear, norm, last_linear, last_norm = self.feature
        x = self.dropout(norm(linear(x_BND.flatten(1))))
        return last_norm(last_linear(x)).float()  # type: ignore[no-any-return]  # (B, D)

    def _masked(self, x_BND: Tensor) -> Tensor:
        """The blocks over random tokens of each image, with the learnt token in the places of the others."""
        places_BN = torch.rand(x_BND.shape[:2], device=x_BND.device).argsort(1)[:, : self.kept]
        places_BND = places_BN[:, :, None].expand(-1, -1, x_BND.shape[2])
        kept_BND = self.norm(self.blocks(x_BND.gather(1, places_BND)))
        return self.mask_token.to(kept_BND.dtype).expand_as(x_BND).scatter(1, places_BND, kept_BND)


@register_backbone()
def vit_t(embedding_size: int, dropout: float) -> Backbone:
    """InsightFace's ViT-T, trained with drop path 0.1 and 10 % of the tokens masked."""
    return VisionTransformer(
        width=256, depth=12, drop_path=0.1, mask_ratio=0.1, embedding_size=embedding_size, dropout=dropout
    )


@register_backbone()
def vit_t_dp005_mask0(embedding_size: int, dropout: float) -> Backbone:
    """InsightFace's ViT-T, trained with drop path 0.05 and no token masked."""
    return VisionTransformer(
        width=256, depth=12, drop_path=0.05, mask_ratio=0.0, embedding_size=embedding_size, dropout=dropout,
        evaluates_as="vit_t",
    )  # fmt: skip


@register_backbone()
def vit_s(embedding_size: int, dropout: float) -> Backbone:
    """InsightFace's ViT-S, trained with drop path 0.1 and 10 % of the tokens masked."""
    return VisionTransformer(
        width=512, depth=12, drop_path=0.1, mask_ratio=0.1, embedding_size=embedding_size, dropout=dropout
    )


@register_backbone()
def vit_s_dp005_mask_0(embedding_size: int, dropout: float) -> Backbone:
    """InsightFace's ViT-S, trained with drop path 0.05 and no token masked."""
    return VisionTransformer(
        width=512, depth=12, drop_path=0.05, mask_ratio=0.0, embedding_size=embedding_size, dropout=dropout,
        evaluates_as="vit_s",
    )  # fmt: skip


@register_backbone()
def vit_b(embedding_size: int, dropout: float) -> Backbone:
    """InsightFace's ViT-B, trained with drop path 0.1 and 10 % of the tokens masked."""
    return VisionTransformer(
        width=512, depth=24, drop_path=0.1, mask_ratio=0.1, embedding_size=embedding_size, dropout=dropout
    )


@register_backbone()
def vit_b_dp005_mask_005(embedding_size: int, dropout: float) -> Backbone:
    """InsightFace's ViT-B, trained with drop path 0.05 and 5 % of the tokens masked."""
    return VisionTransformer(
        width=512, depth=24, drop_path=0.05, mask_ratio=0.05, embedding_size=embedding_size, dropout=dropout,
        evaluates_as="vit_b",
    )  # fmt: skip
