"""Local training through momentum auxiliary networks, and its relatives, of any row of units."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.data import DataError
from peira.nn.evaluation import evaluating
from peira.training.man.auxiliary import (
    Auxiliary,
    Bias,
    Decoder,
    MomentumPath,
    Start,
    make_head,
    supervised_contrastive,
)
from peira.training.man.imagenet import imagenet_resnet
from peira.training.man.memory import (
    Loss,
    MemoryReport,
    checkpointed_backward,
    end_to_end_backward,
    peak_bytes,
    peaks,
    running_bytes,
    weight_bytes,
)
from peira.training.man.partition import (
    balanced_partition,
    checked_partition,
    even_partition,
    local_weights,
    published_partition,
    released_weights,
)

__all__ = [
    "LocalTrainer",
    "MemoryReport",
    "checkpointed_backward",
    "imagenet_resnet",
    "local_weights",
    "published_partition",
    "released_weights",
    "supervised_contrastive",
]

LocalLoss = Literal["ce", "infopro", "contrast"]
Extra = Callable[[nn.Module], Tensor]
Weights = tuple[float, float]

PROJECTED = 128
# Tolerance of the check that restored pictures are in [0, 1]: rounding of the normalisation.
ROUNDING = 1e-4


class LocalTrainer(nn.Module):
    """Trains a network as a row of modules between which no gradient passes.

    Module i is trained on a loss of its own on y_i = LB_i(x_i) + EMA_i(x_i), where x_i is its
    output, EMA_i an exponential moving average of the next module's first unit and LB_i a trained
    copy of that unit (Su et al. 2024, Momentum Auxiliary Network). Its backward pass is over, and
    what it held is freed, before the next module begins. The last module is trained on the
    network's own head. What remains is the plain network.

    With `momentum=None, bias=None` it is plain local learning: greedy with `aux="0c1f"`, DGL with
    "1c2f", InfoPro with `local_loss="infopro"`; with `partition=1` it is backpropagation.

    Args:
        units: [stem, unit 1, ..., unit M, head], a list or an `nn.Sequential`, used in place.
        partition: number of modules of equal length; "balanced" for `modules` modules of the
            lowest measured peak of memory; or the last unit of each module, such as
            `published_partition("resnet32", 8)`.
        aux: auxiliary classifier: 0c1f, 0c2f, 1c1f, 1c2f, 1c3f, 2c2f (convolutions and linear
            layers) or "imagenet" (with it decoders are deeper too).
        local_loss: "ce" classifies; "infopro" reconstructs the picture as well; "contrast" is the
            supervised contrastive loss of a projection.
        momentum: m in theta_EMA <- m theta_EMA + (1 - m) theta, in [0, 1); None for no EMA.
        bias: "unit" for LB_i, "vector" for one number per channel instead, "units" for two trained
            copies (as many parameters as MAN, no EMA: give `momentum=None`), None for none.
        image: shape of one input.
        weights: lambda_1 of the reconstruction and lambda_2 of the task, one pair for all modules
            or one for each but the last; default (0, 1), for "infopro" `local_weights`.
        normalised: mean and standard deviation per channel that were taken off the pictures, which
            the reconstruction puts back; None where they are in [0, 1].
        modules: number of modules, for `partition="balanced"`.
        start: "copy", or "redrawn" for EMA and LB that begin with weights of their own, as in the
            released code.

    Attributes:
        network: the plain network, trained in place.
        ends: last unit of each module.
        auxiliaries: auxiliary network of each module but the last.
        losses_: local losses of the last `backward`, (modules,).
        history_: one record per epoch of `fit`: losses (mean of each module), learning_rate,
            seconds.

    Raises:
        DataError: more modules than units; a unit that does not take what the one before gives; a
            reconstruction of what is no picture; momentum outside [0, 1).

    Example:
        >>> from peira.nn import cifar_resnet
        >>> trainer = LocalTrainer(cifar_resnet(20), partition=4)
        >>> trainer.ends
        [2, 4, 6, 9]
    """

    def __init__(
        self,
        units: nn.Sequential | Sequence[nn.Module],
        partition: int | Literal["balanced"] | Sequence[int] = 2,
        aux: str = "1c2f",
        local_loss: LocalLoss = "ce",
        momentum: float | None = 0.995,
        bias: Bias | None = "unit",
        *,
        image: Sequence[int] = (3, 32, 32),
        weights: Weights | Sequence[Weights] | None = None,
        normalised: tuple[Sequence[float], Sequence[float]] | None = None,
        modules: int | None = None,
        start: Start = "copy",
    ) -> None:
        super().__init__()
        self.network = units if isinstance(units, nn.Sequential) else nn.Sequential(*units)
        _check_choices(len(self.network), local_loss, momentum, bias, start)
        self.aux, self.local_loss, self.momentum, self.bias = aux, local_loss, momentum, bias
        self.start, self.image = start, tuple(image)
        self.normalised = normalised
        self._shapes = _shapes(self.network, self.image)
        self.losses_: Tensor = torch.empty(0)
        self.history_: list[dict[str, Any]] = []
        self.weights: list[Weights] = []
        if partition == "balanced":
            partition = self._balanced(modules or 2, weights)
        elif isinstance(partition, int):
            partition = even_partition(self._units, partition)
        self.ends = checked_partition(partition, self._units)
        self.weights = _one_each(weights, len(self.ends), local_loss)
        self.auxiliaries = nn.ModuleList(
            self._auxiliary(end, pair)
            for end, pair in zip(self.ends[:-1], self.weights, strict=True)
        )
        self.auxiliaries.to(next(self.network.parameters(), torch.empty(0)).device)
        # Views of the same units, out of the registry: the network's parameters have one name each.
        starts = [0, *(end + 1 for end in self.ends[:-1])]
        stops = [*(end + 1 for end in self.ends[:-1]), len(self.network)]
        self._spans = tuple(slice(*span) for span in zip(starts, stops, strict=True))

    @property
    def local_modules(self) -> list[nn.Sequential]:
        """The units of each module; the first has the stem, the last the head."""
        return [self.network[span] for span in self._spans]

    @property
    def _units(self) -> int:
        return len(self.network) - 2

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """The plain network's outputs."""
        logits: Tensor = self.network(x)
        return logits

    def backward(
        self,
        images: Float[Tensor, "batch ..."],
        loss: Loss,
        extra: Extra | None = None,
        labels: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Forward and backward pass of one module after the other, and of the moving averages.

        Gradients are added to the parameters', for the caller's one optimiser to step afterwards.

        Args:
            images: one batch.
            loss: logits -> scalar, used at every local head and at the end.
            extra: a further term for each local module (its units as a module), such as a penalty.
            labels: needed by `local_loss="contrast"`.

        Returns:
            The network's logits, detached.

        Raises:
            DataError: a batch of 1 for batch norm; pictures outside [0, 1] for a reconstruction;
                no labels for the contrastive loss.
        """
        losses, logits = [], images
        for local, output in self._steps(images, loss, extra, labels):
            losses.append(local)
            logits = output
        self.losses_ = torch.stack(losses)
        return logits

    def _steps(
        self, images: Tensor, loss: Loss, extra: Extra | None, labels: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Train one module at each step; gives its loss and its output, both detached."""
        self._check_batch(images, labels)
        picture = self._picture(images)
        x = images
        *modules, last = self.local_modules
        for number, module in enumerate(modules):
            local, x = self._local_step(number, module, x, picture, loss, extra, labels)
            yield local, x
        logits = last(x)
        local = _with_extra(loss(logits), extra, last)
        local.backward()
        yield local.detach(), logits.detach()

    def _local_step(
        self,
        number: int,
        module: nn.Module,
        x: Tensor,
        picture: Tensor | None,
        loss: Loss,
        extra: Extra | None,
        labels: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        auxiliary: Any = self.auxiliaries[number]
        x = module(x)
        local = auxiliary(x, picture, loss, labels)
        local = _with_extra(local, extra, module)
        # Weights of 0 leave a module without a loss, as the released schedule does at K = 4.
        if local.requires_grad:
            local.backward()
        auxiliary.path.follow(self.network[self.ends[number] + 1])
        return local.detach(), x.detach()

    def fit(
        self,
        loader: Iterable[Any],
        epochs: int = 10,
        learning_rate: float = 0.1,
        weight_decay: float = 1e-4,
        warmup: int = 0,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        watch: Callable[[range], Iterable[int]] = iter,
    ) -> Self:
        """Train by SGD with Nesterov momentum 0.9 and a cosine learning rate, the paper's recipe.

        Args:
            loader: batches of (images, labels), its length known.
            epochs: passes through the loader.
            learning_rate: highest.
            weight_decay: of all trained parameters.
            warmup: epochs in which the rate rises from 0.01.
            loss: (logits, labels) -> scalar.
            watch: wraps the range of epochs, for a progress bar.
        """
        optimizer = sgd(self, learning_rate, weight_decay)
        device = next(self.network.parameters()).device
        batches = len(loader)  # type: ignore[arg-type]
        step = 0
        self.train()
        for _ in watch(range(epochs)):
            began, sums = perf_counter(), torch.zeros(len(self.ends), device=device)
            for images, labels in loader:
                images, labels = images.to(device), labels.to(device)
                rate = set_rate(
                    optimizer, learning_rate, step / (batches * epochs), warmup / epochs
                )
                optimizer.zero_grad()
                self.backward(images, lambda logits: loss(logits, labels), labels=labels)  # noqa: B023
                optimizer.step()
                sums += self.losses_
                step += 1
            self.history_.append(
                {
                    "losses": (sums / batches).tolist(),
                    "learning_rate": rate,
                    "seconds": perf_counter() - began,
                }
            )
        return self

    def export(self) -> nn.Sequential:
        """A copy of the plain network, without anything that only training needed."""
        return copy.deepcopy(self.network)

    def memory_report(
        self,
        images: Float[Tensor, "batch ..."],
        labels: Int[Tensor, " batch"] | None = None,
    ) -> MemoryReport:
        """What one training step on these images holds, module by module, and end to end.

        Weights, gradients, averages and batch statistics of the trainer stay as they are.

        Args:
            images: one batch.
            labels: their classes; class 0 for all without them.
        """
        twin = copy.deepcopy(self).train()
        labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
        labels = labels.to(images.device)

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels)

        ignore = [images, labels, *twin.parameters()]
        modules, left = peaks(twin._steps(images, loss, None, labels), ignore)
        plain = peak_bytes(lambda: end_to_end_backward(twin.network, images, loss), ignore)
        return MemoryReport(
            tuple(modules), tuple(left), plain,
            weight_bytes([self.network]), weight_bytes([self.auxiliaries]),
        )  # fmt: skip

    def _auxiliary(self, end: int, weights: Weights) -> Auxiliary:
        """The auxiliary network behind unit `end`, for the shape that its heads will see."""
        looks_ahead = self.momentum is not None or self.bias in ("unit", "units")
        seen = self._shapes[end + looks_ahead]
        following: nn.Module = self.network[end + 1]
        path = MomentumPath(following, _width(seen), self.momentum, self.bias, self.start)
        contrast = self.local_loss == "contrast"
        reconstruction, task = weights
        head = decoder = None
        if task:
            widest = max(_width(shape) for shape in self._shapes[:-1])
            outputs = PROJECTED if contrast else _width(self._shapes[-1])
            head = make_head(self.aux, seen, widest, outputs)
        if reconstruction:
            decoder = Decoder(seen, self.image, pyramid=self.aux == "imagenet")
        return Auxiliary(path, head, decoder, weights, contrast)

    def _balanced(self, modules: int, weights: Weights | Sequence[Weights] | None) -> list[int]:
        """The partition of `modules` modules with the lowest peak, measured on random pictures."""
        even_partition(self._units, modules)
        given = _one_each(weights, modules, self.local_loss) or [(0.0, 1.0)]
        # Which module a unit will be in is not known yet: each gets the parts that any has.
        pair = max(pair[0] for pair in given), max(pair[1] for pair in given)
        auxiliaries = self._possible_auxiliaries(pair)
        images = torch.rand(2, *self.image)
        labels = torch.zeros(2, dtype=torch.long)

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels)

        units = [copy.deepcopy(unit).cpu().train() for unit in self.network]
        measured = running_bytes(
            units, images, {end: part.cpu() for end, part in auxiliaries.items()},
            lambda auxiliary, x: auxiliary(x, images, loss, labels), loss,
        )  # fmt: skip
        return balanced_partition(*measured, modules)

    def _possible_auxiliaries(self, weights: Weights) -> dict[int, Auxiliary]:
        """An auxiliary network for each unit that a module can end with."""
        found = {}
        for end in range(1, self._units):
            with suppress(DataError):
                found[end] = self._auxiliary(end, weights).cpu().train()
        return found

    def _picture(self, images: Tensor) -> Tensor | None:
        """What the decoders shall put out: the pictures in [0, 1]; None without a decoder."""
        if not any(reconstruction for reconstruction, _ in self.weights):
            return None
        picture = images
        if self.normalised is not None:
            mean, std = (images.new_tensor(part).view(-1, 1, 1) for part in self.normalised)
            picture = images * std + mean
        low, high = (float(end) for end in picture.aminmax())
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise DataError(
                "pictures outside [0, 1] cannot be reconstructed", value=f"{low:.3g} to {high:.3g}",
                expected="pictures in [0, 1], or `normalised=(mean, std)` of what was done to them",
            )  # fmt: skip
        return picture.clamp(0, 1)

    def _check_batch(self, images: Tensor, labels: Tensor | None) -> None:
        norms = nn.modules.batchnorm._BatchNorm
        if len(images) == 1 and any(isinstance(m, norms) and m.training for m in self.modules()):
            raise DataError("batch norm cannot train on one sample", value="a batch of 1",
                            expected="2 or more")  # fmt: skip
        if self.local_loss == "contrast" and labels is None and len(self.ends) > 1:
            raise DataError("the contrastive loss needs the labels", expected="labels=")


def sgd(network: nn.Module, learning_rate: float, weight_decay: float = 1e-4) -> torch.optim.SGD:
    """SGD with Nesterov momentum 0.9 of all parameters that are trained."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    return torch.optim.SGD(
        trained, learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay, fused=True
    )


def set_rate(
    optimizer: torch.optim.Optimizer, peak: float, progress: float, warmup: float = 0.0
) -> float:
    """Set and return the cosine learning rate at `progress` of training, from 0 to 1.

    During the first `warmup` of it the rate is blended with 0.01, linearly.
    """
    rate = 0.5 * peak * (1 + math.cos(math.pi * progress))
    if progress < warmup:
        share = progress / warmup
        rate = rate * share + 0.01 * (1 - share)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _with_extra(local: Tensor, extra: Extra | None, module: nn.Module) -> Tensor:
    return local if extra is None else local + extra(module)


def _check_choices(
    units: int, local_loss: str, momentum: float | None, bias: str | None, start: str
) -> None:
    if units < 3:
        raise DataError("too few units", value=units, expected="a stem, one unit or more, a head")
    if momentum is not None and not 0 <= momentum < 1:
        raise DataError("momentum of the average", value=momentum, expected="0 or more, below 1")
    for what, value, known in (
        ("local loss", local_loss, get_args(LocalLoss)),
        ("bias", bias, (*get_args(Bias), None)),
        ("start", start, get_args(Start)),
    ):
        if value not in known:
            raise DataError(f"unknown {what}", value=value, expected=", ".join(map(str, known)))


def _one_each(
    weights: Weights | Sequence[Weights] | None, modules: int, local_loss: LocalLoss
) -> list[Weights]:
    """lambda_1 and lambda_2 of each module but the last."""
    if weights is None and local_loss == "infopro":
        # InfoPro's own for two modules are not on the line of those for more.
        weights = local_weights(modules) if modules > 2 else (5.0, 0.5)
    pairs: Any = (0.0, 1.0) if weights is None else weights
    if pairs and isinstance(pairs[0], int | float):
        pairs = [pairs] * (modules - 1)
    if len(pairs) != modules - 1:
        raise DataError(
            "weights of the local losses", value=f"{len(pairs)} pairs",
            expected=f"{modules - 1}: one for each of {modules} modules but the last",
        )  # fmt: skip
    return [(float(a), float(b)) for a, b in pairs]


def _width(shape: Sequence[int]) -> int:
    """Channels of a map, or features."""
    return shape[0] if len(shape) == 3 else shape[-1]


def _shapes(network: nn.Sequential, image: Sequence[int]) -> list[tuple[int, ...]]:
    """What each unit puts out, without the batch."""
    weight = next(network.parameters(), torch.empty(0))
    x = weight.new_zeros(2, *image)
    shapes = []
    with evaluating(network):
        before = "the pictures"
        for name, unit in network.named_children():
            given = tuple(x.shape[1:])
            try:
                x = unit(x)
            except (RuntimeError, ValueError) as error:
                first = next((tuple(w.shape) for w in unit.parameters()), ())
                raise DataError(
                    f"unit {name!r} does not take what {before} gives", value=f"shape {given}",
                    expected=f"what fits its first weights, of shape {first}",
                ) from error  # fmt: skip
            shapes.append(tuple(x.shape[1:]))
            before = f"unit {name!r}"
    return shapes
