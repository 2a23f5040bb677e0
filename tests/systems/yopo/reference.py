"""Slow reference of YOPO on one unpadded prompt: loops over layers and heads, nothing shared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistoken.core.tables import TOKEN, TokenKind

TEXT = TOKEN.make(1)


def prompt_table(*pieces, rows=None, media=0):
    """TokenMap (n, K) of a prompt: an int is that much text, (r, c) a picture of that grid.

    Padding to ``rows`` is put on the left.
    """
    parts = []
    for piece in pieces:
        if isinstance(piece, int):
            parts.append(TEXT.repeat(piece, 1))
            continue
        height, width = piece
        parts.append(
            TOKEN.make(
                height * width,
                kind=TokenKind.VISUAL,
                media=media,
                view=0,
                group=0,
                row=torch.arange(height).repeat_interleave(width),
                col=torch.arange(width).repeat(height),
            )
        )
        media += 1
    table = torch.cat(parts)
    if rows is None:
        return table
    return torch.cat([TOKEN.make(rows - len(table), kind=TokenKind.PAD), table])


def near_of(table, window):
    """Visual pairs within the window, by a double loop."""
    rows = [
        tuple(int(TOKEN.get(row, name)) for name in ("kind", "media", "group", "row", "col"))
        for row in table
    ]
    reach = (window - 1) // 2
    near = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    for i, (kind, *grid, r, c) in enumerate(rows):
        for j, (other, *theirs, y, x) in enumerate(rows):
            both = kind == TokenKind.VISUAL and other == TokenKind.VISUAL and grid == theirs
            near[i, j] = both and abs(r - y) <= reach and abs(c - x) <= reach
    return near


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _attention(attn: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, allowed, value, out) -> Tensor:
    """allowed (H, n, n), factors on probabilities (H, n, n) and on outputs (H, n)."""
    size = attn.head_dim
    q = attn.q_proj(x).unflatten(-1, (-1, size)).transpose(0, 1)
    k = attn.k_proj(x).unflatten(-1, (-1, size)).transpose(0, 1)
    v = attn.v_proj(x).unflatten(-1, (-1, size)).transpose(0, 1)
    if "q_norm" in dict(attn.named_children()):
        q, k = attn.q_norm(q), attn.k_norm(k)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    outputs = []
    for head in range(len(q)):
        group = head // (len(q) // len(k))
        scores = q[head] @ k[group].T * attn.scaling
        probs = scores.masked_fill(~allowed[head], -torch.inf).softmax(-1) * value[head]
        outputs.append(probs @ v[group] * out[head][:, None])
    return attn.o_proj(torch.cat(outputs, dim=-1))


def _ffn(mlp: nn.Module, x: Tensor, visual: Tensor, ratio: int) -> Tensor:
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    off = visual[:, None] & (torch.arange(gate.shape[1]) >= gate.shape[1] // ratio)
    gate, up = gate.masked_fill(off, 0), up.masked_fill(off, 0)
    return mlp.down_proj(mlp.act_fn(gate) * up)


@torch.no_grad()
def reference(
    model, embeds, table, *, mode="exact", window=None, causal=False, cut=None, keep=None, ratio=1
):
    """Rows that are left and their logits (m, vocabulary) of one prompt (n, D)."""
    text = model.model
    layers, heads = text.config.num_hidden_layers, text.config.num_attention_heads
    keep = torch.ones(layers, heads, dtype=torch.bool) if keep is None else keep.bool()
    cut = layers if cut is None else cut
    left = torch.arange(len(embeds))
    hidden = embeds
    is_visual = TOKEN.get(table, "kind") == TokenKind.VISUAL
    near = None if window is None else near_of(table, window)
    for number, layer in enumerate(text.layers):
        if mode != "exact" and number == cut:
            stays = ~is_visual[left]
            left, hidden = left[stays], hidden[stays]
        visual = is_visual[left]
        allowed = left[:, None] >= left[None, :]
        if near is not None:
            block = visual[:, None] & visual[None, :]
            local = near[left][:, left]
            local = local & allowed if causal else local
            allowed = torch.where(block, local, allowed)
        per_head, value, out = [], [], []
        for head in range(heads):
            on = bool(keep[number, head])
            hide = (~visual)[:, None] & visual[None, :] & (mode == "drop" and not on)
            per_head.append(allowed & ~hide)
            reads = on if mode != "exact" else on and number < cut
            factor = torch.ones(len(left))
            factor[visual] = 1.0 if mode == "drop" else float(reads)
            value.append(factor)
            outputs = torch.ones(len(left))
            outputs[visual] = 1.0 if mode == "training_free" else float(on)
            out.append(outputs)
        x = layer.input_layernorm(hidden)
        cos, sin = text.rotary_emb(x[None], left[None])
        hidden = hidden + _attention(layer.self_attn, x, cos[0], sin[0], per_head, value, out)
        hidden = hidden + _ffn(layer.mlp, layer.post_attention_layernorm(hidden), visual, ratio)
    return left, model.lm_head(text.norm(hidden))
