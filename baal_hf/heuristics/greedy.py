"""The greedy choice of K rows whose joint worth is submodular: what a row adds only shrinks as others are picked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def lazy_greedy(
    first_gains: Tensor, gains: Callable[[Tensor], Tensor], accept: Callable[[int], bool], query_size: int, block: int
) -> tuple[Tensor, Tensor]:
    """Pick the row that adds most, K times, looking again only at rows that can still win (Minoux, 1978).

    What a row added when it was last looked at bounds what it adds now, so the search ends at the first bound below the
    best gain. Gains that differ by no more than rounding are equal; of equal ones the lowest row is picked.

    Args:
        first_gains: What each row adds to nothing, [N].
        gains: Rows, int64 [n], to what each adds to the rows picked so far, [n].
        accept: Is told each pick, before the next is looked for, and says whether any row can still add something; if
            none can, the other picks are those of highest first gain.
        query_size: Number of picks, K <= N.
        block: Rows looked at together.

    Returns:
        The picks, int64 [K], and what each added to those before it, [K].
    """
    bounds = first_gains.clone()  # [N], -inf once picked
    rounding = 8 * torch.finfo(bounds.dtype).eps * float(bounds.abs().max())
    pick = int((bounds == bounds.max()).nonzero()[0])
    picks, added = [pick], [float(bounds[pick])]
    while len(picks) < query_size and accept(pick):
        bounds[pick] = -torch.inf
        best = -torch.inf
        order = bounds.argsort(descending=True, stable=True)[: len(bounds) - len(picks)]
        for rows in torch.split(order, block):
            if float(bounds[rows[0]]) < best - rounding:
                break
            bounds[rows] = gains(rows)  # [n]
            best = max(best, float(bounds[rows].max()))
        pick = int((bounds >= best - rounding).nonzero()[0])
        picks.append(pick)
        added.append(float(bounds[pick]))
    rest = first_gains.index_fill(0, torch.tensor(picks, device=bounds.device), -torch.inf)  # [N]
    missing = query_size - len(picks)
    picks += rest.argsort(descending=True, stable=True)[:missing].tolist()
    return torch.tensor(picks, device=bounds.device), bounds.new_tensor(added + [0.0] * missing)
