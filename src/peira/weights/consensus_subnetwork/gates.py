"""Binary gates on residual blocks: decided for each input, straight through backwards.

Zhi et al., "Learning a Consensus Sub-Network with Polarization Regularization and One Pass
Training", arXiv 2302.10798: the binary gating module. Blocks are recognised by torchvision's
attributes (conv1, bn1, conv2, bn2, downsample; a bottleneck's conv3, bn3).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from peira.nn.evaluation import evaluating
from peira.nn.structured import inner_convolutions, residual_blocks

Mode = Literal["layer", "channel"]

# How fast the running votes follow those of a training batch.
MOMENTUM = 0.1


class Gate(nn.Module):
    """n binary gates for each input: mean over pixels, Linear, ReLU, Linear, sigmoid p, p > 1/2.

    Backwards the gradient of a gate goes to its p unchanged (straight through).

    Args:
        channels: of the input.
        gates: n.
        width: of the hidden layer.
        bias: of the output layer at the start: positive opens the gates.
        noise: add logistic noise to the logits in training (Gumbel's trick for two outcomes).

    Attributes:
        votes: running share of inputs that open each gate, from the training batches.
        decisions: the gates of the last batch, with their graph.
    """

    votes: Tensor

    def __init__(
        self,
        channels: int,
        gates: int,
        width: int = 16,
        bias: float = 1.5,
        noise: bool = False,
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, width)
        self.output = nn.Linear(width, gates)
        nn.init.constant_(self.output.bias, bias)
        self.noise = noise
        self.register_buffer("votes", torch.ones(gates))
        self.decisions: Tensor | None = None

    def forward(self, x: Float[Tensor, "batch channels *pixels"]) -> Float[Tensor, "batch gates"]:
        """0 or 1 for each input and gate."""
        pooled = x.flatten(2).mean(-1) if x.ndim > 2 else x
        logits = self.output(F.relu(self.hidden(pooled)))
        if self.noise and self.training:
            uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = logits + torch.logit(uniform)
        p = torch.sigmoid(logits)
        # p - p.detach() is exactly 0, so that an open gate is exactly 1.
        decisions = (p > 0.5).to(p.dtype) + (p - p.detach())
        self.decisions = decisions
        if self.training:
            self.votes.lerp_(decisions.detach().mean(0), MOMENTUM)
        return decisions

    @property
    def share(self) -> Float[Tensor, " gates"]:
        """Share of the last batch that opened each gate; the running votes before the first."""
        return self.votes if self.decisions is None else self.decisions.mean(0)

    @property
    def flops(self) -> int:
        """Operations of the two layers for one input."""
        return 2 * (self.hidden.weight.numel() + self.output.weight.numel())

    def __getstate__(self) -> dict[str, Any]:
        # The graph of a batch can be neither copied nor pickled, and belongs to that batch.
        return {**self.__dict__, "decisions": None}


class GatedBlock(nn.Module):
    """A residual block, and gates that decide for each input what of its branch is computed.

    Layer mode: ReLU(shortcut(x) + g F(x)). Channel mode: the hidden channels are multiplied by
    their gates; an input that opens no channel gets the shortcut only, as if the block were gone.

    Args:
        block: a basic or a bottleneck block.
        gate: gives (batch, gates) from the block's input, see `gates_of`.
        mode: what is gated.
        skip: leave out what is closed instead of multiplying it by zero: in layer mode the branch
            of closed inputs, in channel mode channels that no input of the batch opens. Closed
            gates then get no gradient from the task.

    Attributes:
        flops: operations of each convolution of the branch for one input, after the first pass.
        computed: share of the branch's operations that the last pass computed.
    """

    def __init__(
        self, block: nn.Module, gate: nn.Module, mode: Mode = "layer", skip: bool = False
    ) -> None:
        super().__init__()
        self.block = block
        self.gate = gate
        self.mode = mode
        self.skip = skip
        self.flops: tuple[int, ...] = ()
        self.computed = 1.0

    def forward(self, x: Float[Tensor, "batch channels *in"]) -> Float[Tensor, "batch out *to"]:
        """The block's output, of the parts that the gates leave open."""
        if not self.flops:
            self.flops = self._flops(x)
        gates = self.gate(x)
        short = self.shortcut(x)
        if self.mode == "layer":
            return self.join(self._by_input(x, gates, short))
        alive = _product([(part > 0).any(1) for part in gates.detach().split(self.widths, 1)])
        branch = self._by_channel(x, gates)
        # Nearly always all are, and then there is nothing to multiply.
        if not alive.all():
            branch = branch * _as_map(alive.to(x.dtype), branch)
        return self.join(short + branch)

    def shortcut(self, x: Tensor) -> Tensor:
        """What remains of the block when all is closed."""
        downsample = self.block.downsample
        return x if downsample is None else cast(Tensor, cast(nn.Module, downsample)(x))

    def join(self, total: Tensor) -> Tensor:
        """What follows the sum of shortcut and branch."""
        relu = getattr(self.block, "relu", None)
        return cast(Tensor, relu(total)) if isinstance(relu, nn.Module) else F.relu(total)

    def residual(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """The branch; `gates` (batch, gates) multiply its hidden channels."""
        parts = [None] if gates is None else [*gates.split(self.widths, 1), None]
        convolutions = self.convolutions
        for place, (convolution, norm) in enumerate(convolutions):
            x = norm(convolution(x))
            if place < len(convolutions) - 1:
                x = F.relu(x)
                part = parts[place] if gates is not None else None
                x = x if part is None else x * _as_map(part, x)
        return x

    @property
    def convolutions(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """(convolution, norm) of the branch, in order."""
        last = len(inner_convolutions(self.block)) + 1
        return [
            (getattr(self.block, f"conv{i}"), getattr(self.block, f"bn{i}"))
            for i in range(1, last + 1)
        ]

    @property
    def widths(self) -> list[int]:
        """Channels of each hidden layer of the branch."""
        return [convolution.out_channels for convolution, _ in self.convolutions[:-1]]

    def cost(self, share: Float[Tensor, " gates"]) -> Float[Tensor, ""]:
        """Operations of the branch for one input, when that share of inputs opens each gate.

        Channel mode: a convolution costs its whole times the open shares of its inputs and outputs.
        """
        if not self.flops:
            raise ValueError("the cost is known after the first pass: run the network on a batch")
        if self.mode == "layer":
            return share.sum() * sum(self.flops)
        return branch_cost(self.flops, [part.mean() for part in share.split(self.widths)])

    def _by_input(self, x: Tensor, gates: Tensor, short: Tensor) -> Tensor:
        gates = gates.expand(len(x), 1)
        chosen = gates.detach().flatten().nonzero().flatten()
        # One input has no variance for the batch norm of a 1 x 1 map.
        few = self.training and len(chosen) == 1
        if not self.skip or few or len(chosen) == len(x):
            self.computed = 1.0
            branch = self.residual(x)
            return short + branch * _as_map(gates, branch)
        self.computed = len(chosen) / len(x)
        if not len(chosen):
            return short
        branch = self.residual(x[chosen])
        return short.index_add(0, chosen, branch * _as_map(gates[chosen], branch))

    def _by_channel(self, x: Tensor, gates: Tensor) -> Tensor:
        self.computed = 1.0
        if not self.skip:
            return self.residual(x, gates)
        parts = gates.split(self.widths, 1)
        chosen = [(part.detach() > 0).any(0).nonzero().flatten() for part in parts]
        shares = [len(c) / w for c, w in zip(chosen, self.widths, strict=True)]
        if min(shares) == 1:
            return self.residual(x, gates)
        if min(shares) == 0:
            self.computed = 0.0
            return torch.zeros_like(self.shortcut(x))
        self.computed = float(branch_cost(self.flops, shares)) / sum(self.flops)
        inputs: Tensor | None = None
        for place, (convolution, norm) in enumerate(self.convolutions):
            outputs = chosen[place] if place < len(chosen) else None
            x = norm_of(norm, convolution_of(convolution, x, outputs, inputs), outputs)
            if outputs is not None:
                x = F.relu(x)
                x = x * _as_map(parts[place].index_select(1, outputs), x)
            inputs = outputs
        return x

    def _flops(self, x: Tensor) -> tuple[int, ...]:
        found = []
        size = x.shape[2:]
        for convolution, _ in self.convolutions:
            size = _output_size(convolution, size)
            found.append(2 * convolution.weight.numel() * size.numel())
        return tuple(found)


class GatedUnit(GatedBlock):
    """Any module whose output has its input's shape, in layer mode: x + g (unit(x) - x)."""

    def shortcut(self, x: Tensor) -> Tensor:
        """The input."""
        return x

    def join(self, total: Tensor) -> Tensor:
        """The sum as it is."""
        return total

    def residual(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """What the unit changes."""
        output = self.block(x)
        if output.shape != x.shape:
            raise ValueError(
                "a unit that closes becomes the identity, but this one turns "
                f"{tuple(x.shape[1:])} into {tuple(output.shape[1:])}: gate a block with a shortcut"
            )
        return cast(Tensor, output - x)

    def _flops(self, x: Tensor) -> tuple[int, ...]:
        from peira.nn.costs import flops

        # A copy, so that hooks and statistics of the unit do not notice.
        return (flops(copy.deepcopy(self.block), x[:1].detach()),)


def gate_blocks(
    network: nn.Module,
    mode: Mode,
    make_gate: Callable[[int, int], nn.Module] = Gate,
    units: Sequence[str] | None = None,
    skip: bool = False,
) -> dict[str, GatedBlock]:
    """Put gates on the residual blocks of a network, in place.

    Args:
        network: has residual blocks with torchvision's attribute names.
        mode: "layer" gates whole blocks, "channel" the channels between a block's convolutions.
        make_gate: (channels of the block's input, gates) -> gate module.
        units: names of the modules to gate; all residual blocks without it. In layer mode also
            other modules whose output has the shape of their input.
        skip: leave out what is closed, see `GatedBlock`.

    Returns:
        Name -> gated block, in the network's order.

    Raises:
        ValueError: nothing to gate; an unknown name; a block whose forward is not torchvision's;
            in channel mode a module without hidden channels or a grouped convolution.
    """
    blocks = residual_blocks(network)
    names = list(blocks) if units is None else list(units)
    if not names:
        raise ValueError(
            "no residual block in this network (modules with conv1, bn1, conv2, bn2, downsample): "
            "name the units to gate"
        )
    gated: dict[str, GatedBlock] = {}
    for name in names:
        module = _module(network, name)
        kind = GatedBlock if name in blocks else GatedUnit
        if kind is GatedUnit and mode == "channel":
            raise ValueError(f"{name!r} is no residual block: only mode 'layer' can gate it")
        block = kind(module, nn.Identity(), mode, skip)
        if kind is GatedBlock:
            _check_forward(name, block)
        gates = sum(block.widths) if mode == "channel" else 1
        weight = next(module.parameters())
        block.gate = make_gate(_channels(name, module), gates).to(weight.device, weight.dtype)
        gated[name] = block
    for name, block in gated.items():
        network.set_submodule(name, block)
    return gated


def ungated(network: nn.Module) -> nn.Module:
    """A copy of a gated network in which every gated block is the block alone."""
    plain = copy.deepcopy(network)
    for name, module in list(plain.named_modules()):
        if isinstance(module, GatedBlock):
            plain.set_submodule(name, module.block)
    return plain


def branch_cost(flops: Sequence[float], shares: Sequence[Any]) -> Any:
    """Operations of a chain of convolutions when only these shares of its hidden channels are open.

    Args:
        flops: of each convolution with all channels.
        shares: open share of each hidden layer, one fewer.
    """
    widths = [1.0, *shares, 1.0]
    return sum(f * a * b for f, a, b in zip(flops, widths[:-1], widths[1:], strict=True))


def convolution_of(
    convolution: nn.Conv2d, x: Tensor, outputs: Tensor | None, inputs: Tensor | None
) -> Tensor:
    """The convolution between some of its channels only; None is all of them."""
    weight, bias = convolution.weight, convolution.bias
    # The gradient of index_select is several times as fast as that of indexing.
    if outputs is not None:
        weight = weight.index_select(0, outputs)
        bias = None if bias is None else bias.index_select(0, outputs)
    if inputs is not None:
        weight = weight.index_select(1, inputs)
    return convolution._conv_forward(x, weight, bias)


def norm_of(norm: nn.BatchNorm2d, x: Tensor, channels: Tensor | None) -> Tensor:
    """The batch norm of some of its channels only, whose running statistics it updates."""
    if channels is None:
        return cast(Tensor, norm(x))
    mean, variance = norm.running_mean, norm.running_var
    if mean is not None and variance is not None:
        mean, variance = mean[channels], variance[channels]
    weight, bias = (
        None if part is None else part.index_select(0, channels)
        for part in (norm.weight, norm.bias)
    )
    momentum = 0.1 if norm.momentum is None else norm.momentum
    batch = norm.training or mean is None
    x = F.batch_norm(x, mean, variance, weight, bias, batch, momentum, norm.eps)
    if norm.training and norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean[channels], norm.running_var[channels] = mean, variance
    return x


def _as_map(gates: Tensor, like: Tensor) -> Tensor:
    """Gates (batch, n) or (batch,) as factors of maps (batch, n, height, width)."""
    return gates.view(*gates.shape, *[1] * (like.ndim - gates.ndim))


def _product(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total & part
    return total


def _output_size(convolution: nn.Conv2d, size: Sequence[int]) -> torch.Size:
    # On the meta device nothing is computed but shapes.
    x = torch.empty(1, convolution.in_channels, *size, device="meta")
    weight = torch.empty_like(convolution.weight, device="meta")
    return convolution._conv_forward(x, weight, None).shape[2:]


def _module(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        names = ", ".join(n for n, _ in network.named_children())
        raise ValueError(f"no module {name!r} in this network; there are: {names}") from error


def _channels(name: str, module: nn.Module) -> int:
    first = getattr(module, "conv1", module)
    for part in first.modules():
        if isinstance(part, nn.Conv2d):
            return part.in_channels
        if isinstance(part, nn.Linear):
            return part.in_features
    raise ValueError(f"{name!r} has neither a convolution nor a linear layer: nothing to gate")


def _check_forward(name: str, block: GatedBlock) -> None:
    """Attribute names alone do not say that a block computes ReLU(shortcut + branch)."""
    first = block.convolutions[0][0]
    if block.mode == "channel" and any(conv.groups != 1 for conv, _ in block.convolutions):
        raise ValueError(f"{name!r} has a grouped convolution: only mode 'layer' can gate it")
    size = 2 * max(8, *first.kernel_size)
    weight = first.weight
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, first.in_channels, size, size, generator=generator)
    x = x.to(weight.device, weight.dtype)
    with evaluating(block):
        ours = block.join(block.shortcut(x) + block.residual(x))
        theirs = block.block(x)
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"{name!r} has a residual block's attributes but computes something other than "
            "ReLU(shortcut + branch): gates would change what it computes"
        )
