"""An independent Swin in PyTorch float64, from the formulas of Liu et al. 2021 and LaPE; names are those of the former.

Nothing is rolled or cut into windows: every token looks at all tokens of the map, and a table says, pair by pair, which
of them it shares a window with, and at what offset. The PE's way between stages is the one that lape_jax documents.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference import cases, torch_vit
from tests.reference.swin_cases import SwinCase
from tests.reference.torch_vit import MLP, LayerNorm, PENorm


def pairs(grid: tuple[int, int], window: int, shift: int) -> tuple[Tensor, Tensor]:
    """For each two tokens: what is added to their logit, and the row of their bias (0 where they do not meet).

    With a shift, windows begin `shift` tokens further down and right, and those at the far edge go on at the near one.
    """
    height, width = grid
    added = torch.full((height * width, height * width), -math.inf, dtype=torch.float64)
    row = torch.zeros(height * width, height * width, dtype=torch.long)

    def place(coordinate, side):
        number, within = divmod((coordinate - shift) % side, window)
        return number, within, coordinate < shift  # the last: carried around

    for i in range(height * width):
        for j in range(height * width):
            (i_down, i_y, i_low), (j_down, j_y, j_low) = (place(n // width, height) for n in (i, j))
            (i_right, i_x, i_left), (j_right, j_x, j_left) = (place(n % width, width) for n in (i, j))
            if (i_down, i_right) == (j_down, j_right):
                added[i, j] = 0 if (i_low, i_left) == (j_low, j_left) else -100
                row[i, j] = (i_y - j_y + window - 1) * (2 * window - 1) + i_x - j_x + window - 1
    return added, row


class Attention(nn.Module):
    def __init__(self, case: SwinCase, width: int, heads: int, grid: tuple[int, int], odd: bool):
        super().__init__()
        self.heads, window, shift = heads, case.window, case.window // 2 if odd else 0
        if min(grid) <= window:
            window, shift = min(grid), 0
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.added, self.row = pairs(grid, window, shift)
        self.relative_position_bias_table = None
        if case.relative:
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))

    def forward(self, x: Tensor) -> Tensor:
        head_dim = x.shape[-1] // self.heads
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        outputs = []
        for head in range(self.heads):
            channels = slice(head * head_dim, (head + 1) * head_dim)
            logits = q[..., channels] @ k[..., channels].transpose(1, 2) / math.sqrt(head_dim) + self.added
            if self.relative_position_bias_table is not None:
                logits = logits + self.relative_position_bias_table[self.row, head]
            outputs.append(torch.softmax(logits, dim=-1) @ v[..., channels])
        return self.proj(torch.cat(outputs, dim=-1))


class Block(nn.Module):
    def __init__(self, case: SwinCase, width: int, heads: int, grid: tuple[int, int], odd: bool):
        super().__init__()
        if case.has_pe_norm:
            self.pe_norm = PENorm(case.pe_norm, width, case.ln_eps)
        self.norm1 = LayerNorm(width, case.ln_eps)
        self.attn = Attention(case, width, heads, grid, odd)
        self.norm2 = LayerNorm(width, case.ln_eps)
        self.mlp = MLP(width, int(width * case.mlp_ratio))

    def forward(self, x: Tensor, p: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x) if p is None else self.norm1(x) + p)
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, width: int, grid: tuple[int, int], eps: float):
        super().__init__()
        self.grid = grid
        self.norm = LayerNorm(4 * width, eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def squares(self) -> list[list[int]]:
        """The tokens of each square: (0, 0), (1, 0), (0, 1), (1, 1)."""
        height, width = self.grid
        corners = [(r, c) for r in range(0, height, 2) for c in range(0, width, 2)]
        return [[(r + down) * width + c + right for right in (0, 1) for down in (0, 1)] for r, c in corners]

    def forward(self, x: Tensor) -> Tensor:
        merged = torch.stack([torch.cat([x[:, n] for n in square], dim=-1) for square in self.squares()], dim=1)
        return self.reduction(self.norm(merged))

    def pe(self, w: Tensor) -> Tensor:
        return torch.stack([torch.cat([(w[a] + w[d]) / 2, (w[b] + w[c]) / 2]) for a, b, c, d in self.squares()])


class Stage(nn.Module):
    def __init__(self, case: SwinCase, number: int):
        super().__init__()
        width, depth = case.width * 2**number, case.depths[number]
        grid = (case.grid[0] // 2**number, case.grid[1] // 2**number)
        heads, last = case.stage_heads[number], number == len(case.depths) - 1
        self.blocks = nn.ModuleList(Block(case, width, heads, grid, layer % 2 == 1) for layer in range(depth))
        self.downsample = None if last else PatchMerging(width, grid, case.ln_eps)
        if case.join == "unshared":
            for layer in range(depth):
                table = nn.Parameter(torch.zeros(1, grid[0] * grid[1], width))
                self.register_parameter(f"absolute_pos_embed{layer}", table)

    def forward(self, x: Tensor, w: Tensor | None, join: str) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Tokens and PE for the next stage, tokens after each block and PE that each was given."""
        tokens, delivered = [], []
        for layer, block in enumerate(self.blocks):
            p = None
            if join == "unshared":
                p = getattr(self, f"absolute_pos_embed{layer}")[0]
            elif join == "shared":
                p = w
            elif join != "default":
                p = block.pe_norm(w)
                w = w if join == "lape_sharing" else p
            x = block(x + p, None) if join in ("shared", "unshared") else block(x, p)
            tokens.append(x)
            delivered.append(p)
        seen = torch.stack(tokens), None if join == "default" else torch.stack(delivered)
        if self.downsample is not None:
            x, w = self.downsample(x), None if w is None else self.downsample.pe(w)
        return x, w, *seen


class Swin(nn.Module):
    def __init__(self, case: SwinCase):
        super().__init__()
        self.case = case
        self.patch_embed = torch_vit.PatchEmbed(case)
        self.patch_embed.norm = LayerNorm(case.width, case.ln_eps)
        rows = case.grid[0] * case.grid[1]
        self.absolute_pos_embed = None
        if case.absolute == "learnable" and case.join != "unshared":
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, rows, case.width))
        self.layers = nn.ModuleList(Stage(case, number) for number in range(len(case.depths)))
        last = case.width * 2 ** (len(case.depths) - 1)
        self.norm = LayerNorm(last, case.ln_eps)
        if case.join == "mpvg":
            self.pe_norm_last = PENorm(case.pe_norm, last, case.ln_eps)
        self.head = nn.Linear(last, case.classes)

    def table(self) -> Tensor | None:
        if self.case.absolute == "sincos_1d":
            return torch_vit.sincos_1d(self.case.rows, self.case.width)
        if self.case.absolute == "sincos_2d":
            return torch_vit.sincos_2d(self.case.grid, self.case.width, 0)
        return None if self.absolute_pos_embed is None else self.absolute_pos_embed[0]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`logits` (B, K), `tokens{stage}` (L, B, N, D) and `pe{stage}` (L, N, D; not for default)."""
        x, w = self.patch_embed.norm(self.patch_embed(images)), self.table()
        table = w
        if self.case.join in ("default", "pvg", "mpvg"):
            x = x if w is None else x + w
        w = None if self.case.join == "default" else w
        answer = {}
        for number, stage in enumerate(self.layers):
            x, w, answer[f"tokens{number}"], answer[f"pe{number}"] = stage(x, w, self.case.join)
        encoded = self.norm(x)
        if self.case.join == "mpvg":
            for stage in self.layers[:-1]:
                table = stage.downsample.pe(table)
            encoded = encoded + self.pe_norm_last(table)
        answer["logits"] = self.head(encoded.mean(dim=1))
        return {name: value for name, value in answer.items() if value is not None}


def answer(case: SwinCase, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs, and as `grad NAME` the gradients of sum(logits * cotangent) by all that is learned."""
    model = Swin(case).double()
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()}, strict=True)
    found = model(torch.from_numpy(cases.images(case)))
    (found["logits"] * torch.from_numpy(cases.cotangent(case))).sum().backward()
    gradients = {f"grad {name}": parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return {**{name: value.detach().numpy() for name, value in found.items()}, **gradients}
