"""Losses of vectors: what belongs together shall lie together. c is the cosine, s a scale.

in-batch: -log softmax over j of s * c(u[i], v[j]) at j = i: each text's partner against all others
of the batch (1705.00652, section 4; the mean of both directions: 2103.00020, figure 3). triplet:
max(0, |a - p| - |a - n| + margin) (1503.03832, equation 3; 1908.10084, section 3). cosine:
(c(u, v) - y)^2 with a score y (1908.10084, section 3). cosent: log(1 + sum exp(s * (c[i] - c[j])))
over all pairs of rows where row i has the lower score (Su, "CoSENT", 2022).

Shape letters: B batch (rows), C candidates, D vector width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from chumoku.training.task import Loss


def in_batch_loss(
    u_BD: Tensor,
    v_CD: Tensor,
    *,
    scale: float = 20.0,
    symmetric: bool = False,
    other_BC: Tensor | None = None,
) -> Loss:
    """Row i's partner is v[i]; v[B:], hard negatives, are nobody's. other_BC: False where v[j]
    belongs to row i as well as v[i] does (the same text): it is no negative."""
    logits_BC = scale * F.normalize(u_BD, dim=-1) @ F.normalize(v_CD, dim=-1).T
    if other_BC is not None:
        logits_BC = logits_BC.masked_fill(~other_BC, -torch.inf)
    B = len(u_BD)
    own_B = torch.arange(B, device=u_BD.device)
    total = F.cross_entropy(logits_BC, own_B, reduction="sum")
    if symmetric:
        back = F.cross_entropy(logits_BC[:, :B].T, own_B, reduction="sum")
        total = (total + back) / 2
    return Loss(total, own_B.new_tensor(B))


def triplet_loss(a_BD: Tensor, p_BD: Tensor, n_BD: Tensor, *, margin: float = 5.0) -> Loss:
    """sum over B of max(0, |a - p| - |a - n| + margin), Euclidean."""
    near_B, far_B = (torch.linalg.vector_norm(a_BD - x, dim=-1) for x in (p_BD, n_BD))
    return Loss(F.relu(near_B - far_B + margin).sum(), torch.tensor(len(a_BD)).to(a_BD.device))


def cosine_loss(u_BD: Tensor, v_BD: Tensor, scores_B: Tensor) -> Loss:
    """sum over B of (cosine - score)^2."""
    errors_B = F.cosine_similarity(u_BD, v_BD, dim=-1) - scores_B.to(u_BD)
    return Loss(errors_B.square().sum(), torch.tensor(len(u_BD)).to(u_BD.device))


def cosent_loss(u_BD: Tensor, v_BD: Tensor, scores_B: Tensor, *, scale: float = 20.0) -> Loss:
    """The batch's one loss, times B, so that its mean is over rows as the others' is."""
    cosines_B = scale * F.cosine_similarity(u_BD, v_BD, dim=-1)
    excess_BB = cosines_B[:, None] - cosines_B[None, :]
    wrong_BB = scores_B[:, None] < scores_B[None, :]
    zero = excess_BB.new_zeros(1)  # exp(0): the 1 of the logarithm
    B = len(u_BD)
    total = B * torch.logsumexp(torch.cat([zero, excess_BB[wrong_BB]]), dim=0)
    return Loss(total, torch.tensor(B).to(u_BD.device))
