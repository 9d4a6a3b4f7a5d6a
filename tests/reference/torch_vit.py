"""An independent ViT with position embeddings in PyTorch float64: the yardstick of the parity tests.

It is written for reading, from the formulas of the LaPE paper (ICCV 2023, Eqs. 1-11), Swin (relative position bias),
CPVT (positional encoding generator), MoCo v3 (its sinusoid), RoPE-ViT and DINOv3 (rotary position embeddings) and DeiT
(distillation), and shares nothing with lape_jax:
loops where a formula is per element, one head at a time, a list of blocks in place of a scan. State-dict names are
those of DeiT, of the official LaPE code and of Twins.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference.cases import PE_NORM_PARAMETERS, Case

torch.set_num_threads(1)  # the models are so small that a second thread makes them slower


def sincos_1d(rows: int, width: int) -> Tensor:
    """(rows, D): w[p, i] = sin(p / 10000^(2m/D)) for even i, cos for odd i, m = floor(i/2); p counts extra tokens."""
    table = torch.zeros(rows, width, dtype=torch.float64)
    for p in range(rows):
        for i in range(width):
            angle = p / 10000 ** (2 * (i // 2) / width)
            table[p, i] = math.sin(angle) if i % 2 == 0 else math.cos(angle)
    return table


def sincos_2d(grid: tuple[int, int], width: int, extra_tokens: int) -> Tensor:
    """(extra + gh*gw, D): channels [0, D/2) encode the column, [D/2, D) the row; the rows of extra tokens are zero."""
    table = torch.zeros(extra_tokens + grid[0] * grid[1], width, dtype=torch.float64)
    half = width // 2
    for r in range(grid[0]):
        for c in range(grid[1]):
            for d in range(width):
                position = c if d < half else r
                angle = position * 10000 ** (-2 * (d % half // 2) / half)
                value = math.sin(angle) if d % 2 == 0 else math.cos(angle)
                table[extra_tokens + r * grid[1] + c, d] = value
    return table


def sincos_2d_moco(grid: tuple[int, int], width: int, extra_tokens: int) -> Tensor:
    """(extra + gh*gw, D): sines, then cosines of the column, then of the row; D/4 frequencies from 1 to 1/10000."""
    table = torch.zeros(extra_tokens + grid[0] * grid[1], width, dtype=torch.float64)
    quarter = width // 4
    for r in range(grid[0]):
        for c in range(grid[1]):
            for k in range(quarter):
                omega = 1 / 10000 ** (k / (quarter - 1))
                row = table[extra_tokens + r * grid[1] + c]
                row[k], row[quarter + k] = math.sin(c * omega), math.cos(c * omega)
                row[2 * quarter + k], row[3 * quarter + k] = math.sin(r * omega), math.cos(r * omega)
    return table


def relative_position_index(grid: tuple[int, int]) -> Tensor:
    """(N, N): which row of the bias table query i uses for key j."""
    height, width = grid
    index = torch.zeros(height * width, height * width, dtype=torch.long)
    for i in range(height * width):
        for j in range(height * width):
            down = i // width - j // width + height - 1
            right = i % width - j % width + width - 1
            index[i, j] = down * (2 * width - 1) + right
    return index


def rotary_angles(kind: str, grid: tuple[int, int], head_dim: int, freqs: Tensor | None = None) -> Tensor:
    """(N, hd/2): by how much the pairs of one head are turned at each patch; `freqs` (2, hd/2) are that head's."""
    quarter, places = head_dim // 4, []
    for r in range(grid[0]):
        for c in range(grid[1]):
            if kind == "rope_mixed":
                places.append(c * freqs[0] + r * freqs[1])
            elif kind == "rope_axial":
                x = [c * 100 ** (-4 * k / head_dim) for k in range(quarter)]
                y = [r * 100 ** (-4 * k / head_dim) for k in range(quarter)]
                places.append(torch.tensor(x + y, dtype=torch.float64))
            else:
                periods = [100 ** (2 * k / (head_dim / 2)) for k in range(quarter)]
                y, x = (2 * (i + 0.5) / side - 1 for i, side in zip((r, c), grid, strict=True))
                both = [2 * math.pi * y / p for p in periods] + [2 * math.pi * x / p for p in periods]
                places.append(torch.tensor(both, dtype=torch.float64))
    return torch.stack(places)


def rotated(z: Tensor, kind: str, angles: Tensor, extra_tokens: int) -> Tensor:
    """Queries or keys (B, N', hd) of a head whose patches' pairs are complex numbers times exp(i angle)."""
    first, patches = z[:, :extra_tokens], z[:, extra_tokens:]
    half = z.shape[-1] // 2
    if kind == "rope_dinov3":  # pairs (m, m + hd/2)
        points = torch.complex(patches[..., :half], patches[..., half:])
    else:  # pairs (2m, 2m + 1)
        points = torch.complex(patches[..., 0::2], patches[..., 1::2])
    points = points * torch.polar(torch.ones_like(angles), angles)
    parts = [points.real, points.imag]
    patches = torch.cat(parts, -1) if kind == "rope_dinov3" else torch.stack(parts, -1).flatten(2)
    return torch.cat([first, patches], dim=1)


def normalise(z: Tensor, eps: float) -> Tensor:
    """(z - mean) / sqrt(var + eps) over the last axis, biased variance."""
    centred = z - z.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


class LayerNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * normalise(x, self.eps) + self.bias


class PENorm(nn.Module):
    """The function f of the paper's Table 8: weight * Norm(w) + bias, with the parts that `kind` names."""

    def __init__(self, kind: str, width: int, eps: float):
        super().__init__()
        self.normalises, self.eps = kind in ("layernorm", "norm", "scalar_norm", "vector_norm"), eps
        weight, bias = PE_NORM_PARAMETERS[kind]
        self.weight = None if weight is None else nn.Parameter(torch.ones(() if weight == "scalar" else width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, w: Tensor) -> Tensor:
        w = normalise(w, self.eps) if self.normalises else w
        w = w if self.weight is None else self.weight * w
        return w if self.bias is None else w + self.bias


class Attention(nn.Module):
    """Multi-head self-attention; a relative bias is added to the patch-patch logits alone."""

    def __init__(self, case: Case):
        super().__init__()
        self.heads, self.extra_tokens = case.heads, case.extra_tokens
        self.qkv = nn.Linear(case.width, 3 * case.width)
        self.proj = nn.Linear(case.width, case.width)
        self.relative_position_bias_table = None
        self.rope, self.angles = case.rope, None  # the latter by head, set by the ViT
        if case.relative:
            size = (2 * case.grid[0] - 1) * (2 * case.grid[1] - 1)
            self.relative_position_bias_table = nn.Parameter(torch.zeros(size, case.heads))
            self.register_buffer("relative_position_index", relative_position_index(case.grid), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        head_dim = x.shape[-1] // self.heads
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        outputs = []
        for head in range(self.heads):
            channels = slice(head * head_dim, (head + 1) * head_dim)
            query, key = q[..., channels], k[..., channels]
            if self.rope is not None:
                query, key = (rotated(z, self.rope, self.angles[head], self.extra_tokens) for z in (query, key))
            logits = query @ key.transpose(1, 2) / math.sqrt(head_dim)
            if self.relative_position_bias_table is not None:
                bias = self.relative_position_bias_table[self.relative_position_index, head]
                logits = logits + nn.functional.pad(bias, (self.extra_tokens, 0, self.extra_tokens, 0))
            outputs.append(torch.softmax(logits, dim=-1) @ v[..., channels])
        return self.proj(torch.cat(outputs, dim=-1))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm block; `p` (N', D), if any, is added to the input of q, k and v and to nothing else."""

    def __init__(self, case: Case, layer: int = 0):
        super().__init__()
        if case.has_pe_norm and layer >= case.first_pe_norm:
            self.pe_norm = PENorm(case.pe_norm, case.width, case.ln_eps)
        self.norm1 = LayerNorm(case.width, case.ln_eps)
        self.attn = Attention(case)
        self.norm2 = LayerNorm(case.width, case.ln_eps)
        self.mlp = MLP(case.width, int(case.width * case.mlp_ratio))
        self.gamma_1 = nn.Parameter(torch.ones(case.width)) if case.layer_scale else None
        self.gamma_2 = nn.Parameter(torch.ones(case.width)) if case.layer_scale else None

    def forward(self, x: Tensor, p: Tensor | None) -> Tensor:
        attended = self.attn(self.norm1(x) if p is None else self.norm1(x) + p)
        x = x + (attended if self.gamma_1 is None else self.gamma_1 * attended)
        mixed = self.mlp(self.norm2(x))
        return x + (mixed if self.gamma_2 is None else self.gamma_2 * mixed)


class PEG(nn.Module):
    """What each patch gets from itself and its eight neighbours, channel by channel; tokens before the patches pass.

    Outside of the map there are zeros.
    """

    def __init__(self, case: Case):
        super().__init__()
        self.grid, self.extra_tokens = case.grid, case.extra_tokens
        self.proj = nn.ModuleList([nn.Conv2d(case.width, case.width, 3, groups=case.width)])

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.grid
        result = x.clone()
        for r in range(height):
            for c in range(width):
                encoding = self.proj[0].bias
                for down in (-1, 0, 1):
                    for right in (-1, 0, 1):
                        if 0 <= r + down < height and 0 <= c + right < width:
                            neighbour = x[:, self.extra_tokens + (r + down) * width + c + right]
                            encoding = encoding + self.proj[0].weight[:, 0, 1 + down, 1 + right] * neighbour
                here = self.extra_tokens + r * width + c
                result[:, here] = x[:, here] + encoding
        return result


class PatchEmbed(nn.Module):
    def __init__(self, case: Case):
        super().__init__()
        self.proj = nn.Conv2d(case.channels, case.width, kernel_size=case.patch, stride=case.patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, N, D), row by row."""
        return self.proj(images.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    def __init__(self, case: Case):
        super().__init__()
        self.case = case
        self.patch_embed = PatchEmbed(case)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, case.width)) if case.pool == "token" else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, case.width)) if case.distilled else None
        self._make_tables()
        self.blocks = nn.ModuleList(Block(case, layer) for layer in range(case.depth))
        self.pos_block = nn.ModuleList(PEG(case) for _ in range(case.pegs))
        self.norm = LayerNorm(case.width, case.ln_eps)
        if case.join == "mpvg":
            self.pe_norm_last = PENorm(case.pe_norm, case.width, case.ln_eps)
        self.head = nn.Linear(case.width, case.classes)
        self.head_dist = nn.Linear(case.width, case.classes) if case.distilled else None

    def _make_tables(self) -> None:
        case = self.case
        if case.rope == "rope_mixed":
            self.freqs = nn.Parameter(torch.zeros(2, case.depth, case.width // 2))
        if case.absolute == "learnable" and case.join == "unshared":
            for layer in range(case.depth):
                self.register_parameter(f"pos_embed{layer}", nn.Parameter(torch.zeros(1, case.rows, case.width)))
        elif case.absolute == "learnable":
            self.pos_embed = nn.Parameter(torch.zeros(1, case.rows, case.width))
        elif case.absolute == "sincos_1d":
            self.register_buffer("pos_embed", sincos_1d(case.rows, case.width)[None], persistent=False)
        elif case.absolute is not None:
            table_of = sincos_2d if case.absolute == "sincos_2d" else sincos_2d_moco
            table = table_of(case.grid, case.width, case.extra_tokens)
            self.register_buffer("pos_embed", table[None], persistent=False)

    def _set_angles(self) -> None:
        case = self.case
        for layer, block in enumerate(self.blocks if case.rope else ()):
            own = [None] * case.heads
            if case.rope == "rope_mixed":
                own = self.freqs[:, layer].chunk(case.heads, dim=-1)
            block.attn.angles = [rotary_angles(case.rope, case.grid, case.width // case.heads, freqs) for freqs in own]

    def stem(self, images: Tensor) -> Tensor:
        """alpha: the token embedding [class, distillation, patches] without any position."""
        patches = self.patch_embed(images)
        extra = [token for token in (self.cls_token, self.dist_token) if token is not None]
        return torch.cat([*(token.expand(len(images), -1, -1) for token in extra), patches], dim=1)

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """What leaves the encoder, the tokens after each block (before a PEG), the PE that each block was given."""
        join, tokens, delivered = self.case.join, [], []
        self._set_angles()
        w = getattr(self, "pos_embed", None)
        if join in ("default", "pvg", "mpvg") and w is not None:
            x = x + w
        for layer, block in enumerate(self.blocks):
            if join == "default":
                x = block(x, None)
            elif join in ("shared", "unshared"):
                p = w if join == "shared" else getattr(self, f"pos_embed{layer}")
                x = block(x + p, None)  # the sum replaces x, so the residual stream collects the PE at every layer
            elif join == "lape_sharing":
                p = block.pe_norm(w)
                x = block(x, p)
            elif join == "lape":
                w = p = block.pe_norm(w)  # serial: the next layer starts from what this one delivered
                x = block(x, p)
            elif layer:  # pvg, mpvg: block 0 is a default block
                w = p = block.pe_norm(w)
                x = block(x, p)
            else:
                p = torch.zeros_like(w)
                x = block(x, None)
            if join != "default":
                delivered.append(p[0])
            tokens.append(x)
            if layer < len(self.pos_block):
                x = self.pos_block[layer](x)
        return x, tokens, delivered

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`logits` (B, K), `tokens` (L, B, N', D), `pe` (L, N', D; not for default); distilled: also each head's."""
        x, tokens, delivered = self.encode(self.stem(images))
        answer = {"tokens": torch.stack(tokens)}
        if delivered:
            answer["pe"] = torch.stack(delivered)
        encoded = self.norm(x)
        if self.case.join == "mpvg":
            encoded = encoded + self.pe_norm_last(self.pos_embed)
        if self.case.pool == "gap":
            return answer | {"logits": self.head(encoded.mean(dim=1))}
        if not self.case.distilled:
            return answer | {"logits": self.head(encoded[:, 0])}
        first, second = self.head(encoded[:, 0]), self.head_dist(encoded[:, 1])
        return answer | {"logits": (first + second) / 2, "cls_logits": first, "dist_logits": second}


def build(case: Case, weights: dict[str, np.ndarray]) -> ViT:
    """The reference in float64 with these weights, all of them and no others."""
    model = ViT(case).double()
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()}, strict=True)
    return model


def forward(case: Case, weights: dict[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {name: value.numpy() for name, value in build(case, weights)(torch.from_numpy(images)).items()}


def gradients(case: Case, weights: dict, images: np.ndarray, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of sum(logits * cotangent) with respect to every trainable tensor, by state-dict name."""
    model = build(case, weights)
    (model(torch.from_numpy(images))["logits"] * torch.from_numpy(cotangent)).sum().backward()
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
