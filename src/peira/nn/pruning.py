"""Which weights a network keeps: scores, masks, their controls, and networks that wear them.

A *score* says how much a weight matters, a *mask* which weights are kept: mappings from the names
of a module's parameters to tensors of the same shapes. `keep` is always the fraction KEPT; papers
and code bases disagree on whether "sparsity" means kept or pruned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

State = Mapping[str, Tensor]
Scores = dict[str, Tensor]
Masks = dict[str, Tensor]
Scope = Literal["global", "local"]
Loss = Callable[[Tensor, Tensor], Tensor]


class Mask(nn.Module):
    """Parametrization W -> mask * W: pruned weights act as zero and get zero gradient.

    Args:
        kept: which weights are kept, of the weight's shape.
        dtype: the weight's.
    """

    kept: Tensor

    def __init__(self, kept: Bool[Tensor, "*shape"], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        # Of the weight's type: to multiply by booleans takes several times as long.
        self.register_buffer("kept", kept.to(dtype, copy=True))

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The weight with its pruned entries set to zero."""
        return weight * self.kept


def prunable(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that pruning is about, by name: those with two dimensions or more."""
    return {name: weight for name, weight in module.named_parameters() if weight.ndim >= 2}


def apply_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Give the named parameters their masks, in place, and return the module.

    The parameters stay where they are (`parametrizations.NAME.original` in `state_dict`), so an
    optimiser made afterwards trains them as usual. `remove_masks` undoes it.

    Raises:
        ValueError: no such parameter, another shape, or a parameter that wears a mask already.
    """
    parameters = dict(module.named_parameters())
    for name, mask in masks.items():
        owner, attribute = _owner(module, name)
        if parametrize.is_parametrized(owner, attribute):
            raise ValueError(f"parameter {name!r} has a mask already: call remove_masks first")
        if name not in parameters:
            raise ValueError(f"no parameter {name!r}; there are: {', '.join(parameters)}")
        _check_shape(name, mask, parameters[name])
    for name, mask in masks.items():
        owner, attribute = _owner(module, name)
        weight = parameters[name]
        layer = Mask(mask.to(weight.device), weight.dtype)
        parametrize.register_parametrization(owner, attribute, layer)
    return module


def remove_masks(module: nn.Module) -> nn.Module:
    """Take all masks off, in place; pruned weights stay zero as plain parameters."""
    for owner in list(module.modules()):
        settle(owner, _masked_attributes(owner))
    return module


def settle(owner: nn.Module, attributes: Iterable[str]) -> None:
    """Make parametrized attributes of a module plain parameters of the values they have."""
    for attribute in list(attributes):
        # Deep copies share the class that holds the property; taking it from one breaks the others.
        kind = type(owner)
        owner.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
        parametrize.remove_parametrizations(owner, attribute, leave_parametrized=True)


def masks_of(module: nn.Module) -> Masks:
    """The masks that a module wears, by parameter name."""
    return {
        f"{prefix}.{attribute}" if prefix else attribute: _mask(owner, attribute).kept.bool()
        for prefix, owner in module.named_modules()
        for attribute in _masked_attributes(owner)
    }


def magnitude_scores(state: State) -> Scores:
    """|W| (Han et al. 2015)."""
    return {name: weight.detach().abs() for name, weight in state.items()}


def random_scores(state: State, generator: torch.Generator) -> Scores:
    """Independent N(0, 1)."""
    return {
        name: torch.randn(weight.shape, generator=generator).to(weight.device)
        for name, weight in state.items()
    }


def snip_scores(
    module: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss, masks: Masks | None = None
) -> Scores:
    """SNIP: |dL/dm| at m = 1, m multiplying the weights (Lee et al. 2019, equation 5).

    Args:
        module: the network at the weights to score.
        inputs: one batch, as `module` takes it.
        labels: its labels, as `loss(outputs, labels)` takes them.
        loss: scalar loss.
        masks: score the network under these masks.
    """
    weights = _weights(module, masks)
    ones = {name: torch.ones_like(weight, requires_grad=True) for name, weight in weights.items()}
    gated = {name: ones[name] * weight for name, weight in weights.items()}
    gradients = _gradients(loss(functional_call(module, gated, inputs), labels), ones)
    return {name: gradient.abs() for name, gradient in gradients.items()}


def grasp_scores(
    module: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    loss: Loss,
    masks: Masks | None = None,
    temperature: float = 200.0,
) -> Scores:
    """GraSP: W * (H g), the weights that gradient flow needs (Wang et al. 2020, equation 8).

    H and g are Hessian and gradient of the loss of outputs / `temperature`. The paper scores
    -W * (H g) and removes the highest; here as everywhere the highest are kept.
    """
    weights = {name: weight.requires_grad_() for name, weight in _weights(module, masks).items()}
    value = loss(functional_call(module, weights, inputs) / temperature, labels)
    gradients = _gradients(value, weights, create_graph=True)
    flow = sum((g * g.detach()).sum() for g in gradients.values())
    assert isinstance(flow, Tensor)
    hessian_gradient = _gradients(flow, weights)
    return {name: hessian_gradient[name] * weight.detach() for name, weight in weights.items()}


def synflow_scores(module: nn.Module, inputs: Tensor, masks: Masks | None = None) -> Scores:
    """SynFlow: |W| * dR/d|W|, R the sum of outputs at absolute weights (Tanaka et al. 2020).

    `inputs` is a batch of ones for real-valued inputs, any batch of tokens for token inputs:
    labels play no part.
    """
    weights = {
        name: weight.abs().requires_grad_() for name, weight in _weights(module, masks).items()
    }
    gradients = _gradients(functional_call(module, weights, inputs).sum(), weights)
    return {name: (gradients[name] * weight).detach().abs() for name, weight in weights.items()}


def keep_top(scores: Mapping[str, Tensor], keep: float, scope: Scope = "global") -> Masks:
    """Keep the highest-scored weights: of n, exactly n - floor((1 - keep) n) stay.

    Args:
        scores: score of every weight, by parameter name.
        keep: fraction kept, in (0, 1].
        scope: rank all weights together ("global") or each tensor on its own ("local").

    Returns:
        Boolean masks. Of equal scores the earlier entry goes first, so counts are exact.

    Raises:
        ValueError: `keep` outside (0, 1], no scores, or scores that are not finite.
    Warns:
        UserWarning: a tensor of which nothing is kept: no signal passes it.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is the fraction kept, above 0 and at most 1; got {keep}")
    if not scores:
        raise ValueError("no scores: the module has no parameter with two dimensions or more")
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise ValueError(f"the scores of {name!r} are not finite")
    if scope == "global":
        flat = torch.cat([score.flatten() for score in scores.values()])
        parts = torch.split(_top(flat, keep), [score.numel() for score in scores.values()])
        masks = {
            name: part.view(score.shape)
            for (name, score), part in zip(scores.items(), parts, strict=True)
        }
    else:
        masks = {n: _top(score.flatten(), keep).view(score.shape) for n, score in scores.items()}
    for name, mask in masks.items():
        if not mask.any():
            warnings.warn(f"nothing is kept of {name!r}: raise keep", UserWarning, stacklevel=2)
    return masks


def magnitude_mask(state: State, keep: float, scope: Scope = "global") -> Masks:
    """One-shot magnitude pruning of the tensors with two dimensions or more.

    Args:
        state: parameter name -> weights, as from `state_dict()`.
        keep: fraction kept, in (0, 1].
        scope: "global" ranks all tensors together, embeddings included; "local" each alone.
    """
    weights = {name: weight for name, weight in state.items() if weight.ndim >= 2}
    return keep_top(magnitude_scores(weights), keep, scope)


def prune_in_rounds(
    score: Callable[[Masks], Scores],
    state: State,
    keep: float,
    rounds: int = 1,
    schedule: Literal["linear", "exponential"] = "exponential",
    scope: Scope = "global",
) -> Masks:
    """Prune step by step, scoring anew under the masks so far; what has gone stays gone.

    Args:
        score: scores under given masks, for instance `partial(synflow_scores, module, inputs)`.
        state: parameters to prune; the first masks keep all of them.
        keep: fraction kept after the last round.
        rounds: number of rounds; 1 is one-shot.
        schedule: kept fraction after round r of R: keep^(r/R), or 1 - (1 - keep) r/R.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1; got {rounds}")
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in state.items()}
    for done in range(1, rounds + 1):
        share = done / rounds
        now = keep**share if schedule == "exponential" else 1 - (1 - keep) * share
        scores = score(masks)
        # Below every living score, yet finite: the dead must never come back.
        floor = min(float(s.min()) for s in scores.values()) - 1
        alive = {name: torch.where(masks[name], s, floor) for name, s in scores.items()}
        masks = keep_top(alive, now, scope)
    return masks


def shuffle_masks(masks: Mapping[str, Tensor], generator: torch.Generator) -> Masks:
    """Masks with the same number of kept weights in every tensor, at random places."""
    shuffled = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        shuffled[name] = mask.flatten()[order].view(mask.shape)
    return shuffled


def norm_ratio(state: State, masks: Mapping[str, Tensor], order: Literal[1, 2]) -> float:
    """Norm of the masked weights / norm of all, over all tensors in `masks` as one vector."""
    for name, mask in masks.items():
        _check_shape(name, mask, state[name])
    whole = torch.cat([state[name].detach().flatten() for name in masks]).double()
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    norm = torch.linalg.vector_norm
    return float(norm(whole * kept, order) / norm(whole, order))


def match_norm(
    state: State, masks: Mapping[str, Tensor], order: Literal[1, 2]
) -> dict[str, Tensor]:
    """Dense weights scaled so that their L1 or L2 norm is that of the masked ones."""
    ratio = norm_ratio(state, masks, order)
    return {name: value * ratio if name in masks else value for name, value in state.items()}


def kept_fraction(masks: Mapping[str, Tensor]) -> float:
    """Share of weights kept over all tensors."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / total


def jaccard(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Overlap of two sets of kept weights: |both| / |either|; 1 where both are empty.

    Raises:
        ValueError: masks of different names or shapes.
    """
    if first.keys() != second.keys():
        raise ValueError("the masks are of different parameters")
    both = either = 0
    for name, mask in first.items():
        _check_shape(name, second[name], mask)
        both += int((mask & second[name]).sum())
        either += int((mask | second[name]).sum())
    return both / either if either else 1.0


def _top(flat: Tensor, keep: float) -> Tensor:
    gone = int((1 - keep) * flat.numel())
    if not gone:
        return torch.ones_like(flat, dtype=torch.bool)
    threshold = flat.kthvalue(gone).values
    mask = flat > threshold
    short = flat.numel() - gone - int(mask.sum())
    if short:
        mask[(flat == threshold).nonzero().flatten()[-short:]] = True
    return mask


def _weights(module: nn.Module, masks: Masks | None) -> dict[str, Tensor]:
    weights = {name: weight.detach() for name, weight in prunable(module).items()}
    for name, mask in (masks or {}).items():
        weights[name] = weights[name] * mask
    return {name: weight.clone() for name, weight in weights.items()}


def _gradients(
    value: Tensor, by: dict[str, Tensor], create_graph: bool = False
) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(
        value, list(by.values()), create_graph=create_graph, materialize_grads=True
    )
    return dict(zip(by, gradients, strict=True))


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    try:
        return module.get_submodule(path), attribute
    except AttributeError as error:
        raise ValueError(f"no parameter {name!r} in this module") from error


def _mask(owner: nn.Module, attribute: str) -> Mask:
    mask = _chains(owner)[attribute][0]
    assert isinstance(mask, Mask)
    return mask


def _masked_attributes(owner: nn.Module) -> list[str]:
    if not parametrize.is_parametrized(owner):
        return []
    return [name for name, chain in _chains(owner).items() if isinstance(chain[0], Mask)]


def _chains(owner: nn.Module) -> dict[str, nn.ModuleList]:
    chains = owner.parametrizations
    assert isinstance(chains, nn.ModuleDict)
    return {name: chain for name, chain in chains.items() if isinstance(chain, nn.ModuleList)}


def _check_shape(name: str, mask: Tensor, weight: Tensor) -> None:
    if mask.shape != weight.shape:
        raise ValueError(
            f"the mask of {name!r} has shape {tuple(mask.shape)}, "
            f"the parameter {tuple(weight.shape)}"
        )
