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


def sum_of_squares(x_KMN: Tensor, dim: int | tuple[int, int]) -> Tensor:
    """Return the sums over one or both axes of each matrix, fp32, reduced axes kept."""
    norm: Tensor = torch.linalg.vector_norm(x_KMN, dim=dim, keepdim=True, dtype=torch.float32)
    return norm.square()


def polar_factor(u_KMN: Tensor) -> Tensor:
    """Return nearly (semi-)orthogonal matrices in the dtype of `u_KMN`: singular values about 1.

    Rows are first brought to equal norm, so that rare inputs are not drowned.
    """
    rows, columns = u_KMN.size(-2), u_KMN.size(-1)
    squares_KM1 = sum_of_squares(u_KMN, -1)
    equal_K11 = squares_KM1.sum(dim=-2, keepdim=True).div(rows).sqrt()
    scale_KM1 = equal_K11 / squares_KM1.sqrt().clamp(min=FLOOR)
    norm_K11 = (squares_KM1 * scale_KM1.square()).sum(dim=-2, keepdim=True).sqrt()
    x = (u_KMN * (scale_KM1 / (1.01 * norm_K11 + FLOOR))).to(u_KMN.dtype)
    for a, b, c in POLAR_EXPRESS:
        if rows > columns:  # the small Gram matrix is on the right
            gram = x.mT @ x
            x = torch.baddbmm(x, x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), beta=a)
        else:
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def normalise(x_KMN: Tensor, second: Tensor) -> Tensor:
    """Return fp32 x at norm sqrt(min(M, N)), evened out by the second moment, which is updated in place.

    Both factors are constant along the axis that the second moment averages over, so norms before and after
    follow from one reduction.
    """
    rows, columns = x_KMN.size(-2), x_KMN.size(-1)
    axis, length = (-1, columns) if second.size(-1) == 1 else (-2, rows)
    other = -3 - axis
    squares = sum_of_squares(x_KMN, axis)
    scale = min(rows, columns) ** 0.5 / squares.sum(dim=other, keepdim=True).sqrt().clamp(min=FLOOR)
    squares = squares * scale.square()
    second.lerp_(squares / length, 1.0 - BETA2)
    even = second.clamp(min=1e-10).rsqrt()
    before, after = (s.sum(dim=other, keepdim=True).sqrt() for s in (squares, squares * even.square()))
    evened: Tensor = x_KMN * (scale * even * (before / after.clamp(min=FLOOR)))
    return evened


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

    lr, mu (momentum) and decay (weight decay, before lr) are 0-d fp32 tensors on the matrices' device, so
    that a compiled step is not compiled again when they change.
    """
    g_KMN = torch.stack(tuple(grads_MN)).float()
    momentum_KMN.lerp_(g_KMN, 1.0 - mu)
    u_KMN = normalise(polar_factor(torch.lerp(g_KMN, momentum_KMN, mu).to(dtype)), second)
    shrink_KMN = torch.where(u_KMN * p_KMN >= 0, p_KMN, 0.0)  # decay only where it agrees with the step
    p_KMN.sub_((u_KMN + shrink_KMN * decay) * lr)
