"""Muon's update of a stack of equal matrices: momentum, orthogonalisation, normalisation, cautious decay.

Pure tensor arithmetic. Knows nothing of parameter names, ranks or schedules.

Shape suffixes: K matrices, M rows, N columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Five steps of the optimal polynomial iteration for the polar factor (arXiv 2505.16932).
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
BETA2 = 0.9
FLOOR = 1e-6


def frobenius(x_KMN: Tensor) -> Tensor:
    """Return the norm of each matrix, fp32, as (K, 1, 1)."""
    norm_K11: Tensor = x_KMN.float().square().sum(dim=(-2, -1), keepdim=True).sqrt()
    return norm_K11


def orthogonalise(u_KMN: Tensor) -> Tensor:
    """Return the nearest (semi-)orthogonal matrices in the dtype of `u_KMN`, scaled to norm sqrt(min(M, N)).

    Rows are first brought to equal norm, so that rare inputs are not drowned.
    """
    rows, columns = u_KMN.size(-2), u_KMN.size(-1)
    row_norm = u_KMN.float().square().sum(dim=-1, keepdim=True).sqrt()
    equal = frobenius(u_KMN) / rows**0.5
    x = u_KMN.float() * (equal / row_norm.clamp(min=FLOOR))
    x = (x / (1.01 * frobenius(x) + FLOOR)).to(u_KMN.dtype)
    for a, b, c in POLAR_EXPRESS:
        if rows > columns:  # the small Gram matrix is on the right
            gram = x.mT @ x
            x = torch.baddbmm(x, x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), beta=a)
        else:
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    scale_K11 = min(rows, columns) ** 0.5 / frobenius(x).clamp(min=FLOOR)
    scaled: Tensor = x * scale_K11.to(x.dtype)
    return scaled


def second_moment_size(count: int, rows: int, columns: int) -> tuple[int, int, int]:
    """Return the second moment's shape: a value a row for tall and square matrices, else one a column."""
    return (count, rows, 1) if rows >= columns else (count, 1, columns)


def muon_update(
    p_KMN: Tensor,
    grads_MN: list[Tensor] | tuple[Tensor, ...],
    momentum_KMN: Tensor,
    second: Tensor,
    *,
    lr: Tensor,
    mu: Tensor,
    decay: Tensor,
    dtype: torch.dtype,
) -> None:
    """Update K matrices, their momentum and second moments in place.

    lr, mu (momentum) and decay (weight decay, before lr) are 0-d fp32 tensors, so that a compiled step is not
    compiled again when they change.
    """
    g_KMN = torch.stack(tuple(grads_MN)).float()
    # Written out, not `lerp`: a 0-d CPU tensor as its weight is refused beside CUDA tensors.
    momentum_KMN.add_((g_KMN - momentum_KMN) * (1.0 - mu))
    u_KMN = orthogonalise((g_KMN + (momentum_KMN - g_KMN) * mu).to(dtype)).float()

    axis = -1 if second.size(-1) == 1 else -2
    second.lerp_(u_KMN.square().mean(dim=axis, keepdim=True), 1.0 - BETA2)
    before_K11 = frobenius(u_KMN)
    u_KMN = u_KMN * second.clamp(min=1e-10).rsqrt()
    u_KMN = u_KMN * (before_K11 / frobenius(u_KMN).clamp(min=FLOOR))

    shrink_KMN = (u_KMN * p_KMN >= 0) * (p_KMN * decay)  # decay only where it agrees with the step
    p_KMN.sub_((u_KMN + shrink_KMN) * lr)
