"""Operations that also report the inputs of every matrix product, for statistics of a model's activations.

The wrapped operations compute what the given ones do; feed-forward networks are computed product by product, because a fused
one does not show what it multiplies in between. The model knows nothing of it: it is run with these operations instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F

from jambacli.kernels import Ops
from jambacli.kernels.reference import expert
from quant.formats import QTensor


class Observer(Protocol):
    """Called before each product with the ``name`` of its weight and its input ``x``, float32 [T, n_in].

    ``expert``: which matrix of a stack, None for a plain matrix. ``shares``: float32 [T], how much each row counts, None where
    every row counts once. ``x`` is valid during the call only.
    """

    def __call__(self, name: str, x: torch.Tensor, expert: int | None, shares: torch.Tensor | None) -> None:
        """See the class."""


def observe(ops: Ops, names: Mapping[int, str], observer: Observer, *, all_experts: bool = False) -> Ops:
    """``ops`` that call ``observer`` for every product of a weight whose address (``data_ptr`` of its bytes, or of a router)
    is in ``names``.

    ``all_experts``: each expert is shown every token, also those that are routed to others; a token's share is its
    probability for the expert times the number of experts. The results stay those of the chosen experts.
    """

    def tell(
        weight: torch.Tensor, x: torch.Tensor, index: int | None = None, shares: torch.Tensor | None = None
    ) -> None:
        name = names.get(weight.data_ptr())
        if name is not None and len(x):
            observer(name, x, index, shares)

    def linear(x: torch.Tensor, w: QTensor) -> torch.Tensor:
        tell(w.data, x)
        return ops.linear(x, w)

    def mlp(x: torch.Tensor, gate: QTensor, up: QTensor, down: QTensor) -> torch.Tensor:
        # In place: a new tensor of this size costs more than the arithmetic, as the system clears its pages.
        return linear(F.silu(linear(x, gate), inplace=True).mul_(linear(x, up)), down)

    def experts(
        x: torch.Tensor,
        router: torch.Tensor,
        gate: QTensor,
        up: QTensor,
        down: QTensor,
        top_k: int,
        sizes: Sequence[int] | None = None,
    ) -> torch.Tensor:
        tell(router, x)
        parts = [x] if sizes is None else x.split(list(sizes))
        probabilities = torch.softmax(torch.cat([part @ router.T for part in parts]), dim=-1)
        weights, chosen = probabilities.topk(top_k, dim=-1)
        out = torch.zeros_like(x)
        for index in range(router.shape[0]):
            token, rank = torch.where(chosen == index)
            if not len(token) and not all_experts:
                continue
            rows, shares = (x, probabilities[:, index] * router.shape[0]) if all_experts else (x[token], None)
            tell(gate.data, rows, index, shares)
            tell(up.data, rows, index, shares)
            hidden = F.silu(ops.linear(rows, expert(gate, index)), inplace=True)
            hidden.mul_(ops.linear(rows, expert(up, index)))
            tell(down.data, hidden, index, shares)
            if len(token):
                y = ops.linear(hidden[token] if all_experts else hidden, expert(down, index))
                out.index_add_(0, token, y.mul_(weights[token, rank, None]))
        return out

    wrapped = replace(ops, name=f"observed {ops.name}", linear=linear, mlp=mlp, experts=experts, precise=None)
    if ops.precise is not None:
        precise = partial(observe, ops.precise, names, observer, all_experts=all_experts)
        wrapped = replace(wrapped, precise=precise())
    return wrapped
