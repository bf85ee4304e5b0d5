"""Curvature of a loss: Hessian and Gauss-Newton products, Lanczos, spectra, batch against full.

Works on any `nn.Module` whose forward takes one tensor, at the weights it has when an operator is
made. Parameters are flat vectors in the order of `named_parameters()`; a loss is a scalar, the mean
over the examples. Products are those of Pearlmutter (1994) and Schraudolph (2002).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from peira.data.errors import DataError
from peira.dynamics.probes.parameters import flatten, select, unflatten
from peira.engine.errors import PeiraError

Kind = Literal["hessian", "ggn"]
Loss = Callable[[Tensor, Tensor], Tensor]
Data = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]] | Dataset[Any]
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Operator:
    """Symmetric linear operators on flat parameter vectors, known by their products.

    Attributes:
        apply: (k, size) vectors -> (k, size) products.
        size: number of parameters.
        count: None for one operator, which takes any k; otherwise the number of operators, and
            `apply` multiplies the i-th of exactly `count` vectors with the i-th operator.
        dtype: of the vectors.
        device: of the vectors.
    """

    apply: Product
    size: int
    count: int | None
    dtype: torch.dtype
    device: torch.device

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of each operator."""
        return self.size, self.size

    def __matmul__(self, other: Float[Tensor, "size *k"]) -> Float[Tensor, "size *k"]:
        """Product with one vector, or with the columns of a matrix."""
        columns = other if other.ndim == 2 else other[:, None]
        product = self.apply(columns.to(self.dtype).T).T
        return product if other.ndim == 2 else product[:, 0]

    def scaled(self, diagonal: Float[Tensor, " size"]) -> Operator:
        """S H S for the diagonal matrix S, as of a preconditioner D^-1/2 H D^-1/2."""
        scale = diagonal.to(self.dtype)
        return Operator(
            lambda v: scale * self.apply(scale * v), self.size, self.count, self.dtype, self.device
        )

    def scipy(self) -> Any:
        """As a `scipy.sparse.linalg.LinearOperator`, for `eigsh` and the like; NumPy in and out."""
        from scipy.sparse.linalg import LinearOperator

        def product(columns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            vectors = torch.from_numpy(np.array(columns)).to(self.device)
            return (self @ vectors).cpu().numpy()

        kind = np.dtype(str(self.dtype).removeprefix("torch."))
        return LinearOperator(self.shape, product, product, product, kind, product)


def hessian_operator(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    params: Sequence[str] | None = None,
    chunk: int | None = None,
) -> Operator:
    """The Hessian of the mean loss over `data`, at the model's present weights.

    Args:
        model: takes a tensor of inputs. Active dropout and batch normalisation in training mode
            are put into evaluation mode for the products, with a warning.
        loss: scalar mean over the examples, of outputs and targets.
        data: (inputs, targets), an iterable of such pairs (a `DataLoader`), or a `Dataset` of
            single examples; read once and kept.
        params: names or prefixes ("0", "head.weight") of the parameters; None is all that train.
        chunk: examples at a time. Without it the graph of all examples is kept and every product
            costs one backward pass through it; with it memory is that of one chunk, and every
            product also recomputes the gradient.

    Raises:
        DataError: no data, unknown `params`, a loss that is no scalar, not finite or random, or
            (in chunks) no mean over the examples.
        PeiraError: a product that is not finite.
    """
    return curvature_operator("hessian", model, loss, data, params=params, chunk=chunk)


def ggn_operator(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    params: Sequence[str] | None = None,
    chunk: int | None = None,
) -> Operator:
    """The generalised Gauss-Newton matrix J^T (d2 loss / d outputs^2) J; see `hessian_operator`."""
    return curvature_operator("ggn", model, loss, data, params=params, chunk=chunk)


def curvature_operator(
    kind: Kind,
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    params: Sequence[str] | None = None,
    chunk: int | None = None,
) -> Operator:
    """`hessian_operator` or `ggn_operator`, by name."""
    if chunk is not None and chunk < 1:
        raise DataError("chunk must be at least 1", value=chunk)
    point = _Point(model, loss, params)
    inputs, targets = gather(data)
    point.check(inputs, targets, additive=chunk is not None and chunk < len(inputs))
    if chunk is None or chunk >= len(inputs):
        whole = vmap(point.product(kind, inputs, targets))
        return point.operator(whole)
    parts = list(zip(inputs.split(chunk), targets.split(chunk), strict=True))

    def apply(vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        for x, y in parts:
            total += vmap(point.product(kind, x, y))(vectors) * (len(x) / len(inputs))
        return total

    return point.operator(apply)


def batch_operators(
    kind: Kind,
    model: nn.Module,
    loss: Loss,
    inputs: Float[Tensor, "count batch *features"],
    targets: Tensor,
    *,
    params: Sequence[str] | None = None,
) -> Operator:
    """One operator for each batch, all of whose products come from one vectorised pass.

    Args:
        inputs, targets: `count` batches of equal size along the first axis; batches of one example
            give the single-example curvatures. See `hessian_operator` for the rest.
    """
    point = _Point(model, loss, params)
    point.check(inputs[0], targets[0], additive=False)
    return point.operator(point.product(kind, inputs, targets, len(inputs)), len(inputs))


def gradient_moments(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    params: Sequence[str] | None = None,
    chunk: int = 256,
) -> tuple[Float[Tensor, " size"], Float[Tensor, " size"]]:
    """Mean of the examples' gradients and their variance, entry by entry (n - 1 in it).

    The gradient of a batch of b examples has this mean and this variance over b.

    Args:
        chunk: examples whose single gradients are in memory together.
        model, loss, data, params: see `hessian_operator`.
    """
    point = _Point(model, loss, params)
    inputs, targets = gather(data)
    point.check(inputs, targets, additive=True)
    mean, squares = torch.zeros_like(point.flat), torch.zeros_like(point.flat)
    seen = 0
    for x, y in zip(inputs.split(chunk), targets.split(chunk), strict=True):
        gradients = point.example_gradients(x, y)
        # Chan's update: sums of squares would cancel.
        shift = gradients.mean(dim=0) - mean
        total = seen + len(x)
        squares += (gradients - gradients.mean(dim=0)).square().sum(dim=0)
        squares += shift.square() * (seen * len(x) / total)
        mean, seen = mean + shift * (len(x) / total), total
    return mean, squares / max(seen - 1, 1)


class _Point:
    """A model at fixed weights: its loss as a function of one flat vector."""

    def __init__(self, model: nn.Module, loss: Loss, params: Sequence[str] | None) -> None:
        self.model, self.loss = model, loss
        self.random_layers = _random_layers(model)
        _warn_of(self.random_layers)
        chosen = select(model, params)
        self.chosen = chosen
        self.flat = flatten(chosen)
        # Clones, so that training the model on does not move the point.
        everything = dict(model.named_parameters()) | dict(model.named_buffers())
        self.others = {
            name: value.detach().clone() for name, value in everything.items() if name not in chosen
        }

    def outputs(self, flat: Tensor, inputs: Tensor) -> Tensor:
        values = unflatten(flat, self.chosen)
        return functional_call(self.model, {**self.others, **values}, (inputs,))

    def check(self, inputs: Tensor, targets: Tensor, additive: bool) -> None:
        """That the loss is a scalar, finite and repeatable; if `additive`, a mean of examples."""
        with self.frozen(), torch.no_grad():
            inputs, targets = inputs[:16], targets[:16]
            value = self.loss(self.outputs(self.flat, inputs), targets)
            if value.ndim:
                raise DataError(
                    "the loss is no scalar", value=tuple(value.shape), expected="a mean of examples"
                )
            again = self.loss(self.outputs(self.flat, inputs), targets)
            if not math.isfinite(float(value)):
                raise DataError("the loss is not finite", value=float(value))
            if not torch.equal(value, again):
                raise DataError(
                    "the loss is random: the same weights and examples gave two values",
                    value=(float(value), float(again)),
                )
            if additive:
                twice = [torch.cat([part, part]) for part in (inputs, targets)]
                double = self.loss(self.outputs(self.flat, twice[0]), twice[1])
                if not torch.allclose(double, value, rtol=1e-3, atol=1e-6):
                    raise DataError(
                        "the loss is no mean over the examples: with each of them twice it went "
                        f"from {float(value):g} to {float(double):g}",
                        expected="reduction='mean'",
                    )

    def product(
        self, kind: Kind, inputs: Tensor, targets: Tensor, count: int | None = None
    ) -> Product:
        """Products at this point; of `count` batches at once the rows belong together.

        A sum of losses over rows of weights has each row's own gradient and Hessian in its row.
        """
        outputs, loss = self.outputs, self.loss
        flat = self.flat
        if count is not None:
            flat = flat.expand(count, -1)
            outputs = vmap(outputs)

            def loss(values: Tensor, labels: Tensor) -> Tensor:
                return vmap(self.loss)(values, labels).sum()

        # Fused attention kernels have no second derivative.
        with self.frozen(), sdpa_kernel(SDPBackend.MATH):
            if kind == "hessian":
                _, pull = vjp(grad(lambda w: loss(outputs(w, inputs), targets)), flat)
                return lambda vector: pull(vector)[0]
            values, pull = vjp(lambda w: outputs(w, inputs), flat)
            # The transpose of a transposed Jacobian product: no forward-mode rule is needed.
            _, push = vjp(lambda u: pull(u)[0], torch.zeros_like(values))
            _, bend = vjp(grad(lambda out: loss(out, targets)), values)
        return lambda vector: pull(bend(push(vector)[0])[0])[0]

    def example_gradients(self, inputs: Tensor, targets: Tensor) -> Float[Tensor, "n size"]:
        def one(x: Tensor, y: Tensor) -> Tensor:
            return grad(lambda w: self.loss(self.outputs(w, x[None]), y[None]))(self.flat)

        with self.frozen():
            return vmap(one)(inputs, targets)

    def operator(self, apply: Product, count: int | None = None) -> Operator:
        def checked(vectors: Tensor) -> Tensor:
            expected = (count if count is not None else vectors.shape[0], len(self.flat))
            if tuple(vectors.shape) != expected:
                raise DataError("wrong shape", value=tuple(vectors.shape), expected=str(expected))
            products = apply(vectors)
            if not torch.isfinite(products).all() and torch.isfinite(vectors).all():
                raise PeiraError(
                    "a curvature product is not finite: the weights have diverged, or the loss "
                    "has no second derivative here"
                )
            return products

        return Operator(checked, len(self.flat), count, self.flat.dtype, self.flat.device)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Random layers in evaluation mode, then as they were."""
        for layer in self.random_layers:
            layer.training = False
        try:
            yield
        finally:
            for layer in self.random_layers:
                layer.training = True


def _random_layers(model: nn.Module) -> list[nn.Module]:
    """Layers in training mode whose outputs are random or depend on the other examples."""
    dropout, norm = nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm

    def is_random(layer: nn.Module) -> bool:
        if isinstance(layer, dropout):
            return layer.p > 0
        if isinstance(layer, nn.RNNBase | nn.MultiheadAttention):
            return layer.dropout > 0
        return isinstance(layer, norm | nn.RReLU)

    return [layer for layer in model.modules() if layer.training and is_random(layer)]


def _warn_of(layers: Sequence[nn.Module]) -> None:
    if layers:
        kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
        warnings.warn(
            f"{kinds} in training mode: frozen in evaluation mode for the curvature",
            UserWarning,
            stacklevel=5,
        )


def gather(data: Data) -> tuple[Tensor, Tensor]:
    """All (inputs, targets) as two tensors; raises `DataError` for none or unequal lengths."""
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor):
        inputs, targets = data
    else:
        if isinstance(data, Dataset):
            data = DataLoader(data, batch_size=1024)
        pairs = [(pair[0], pair[1]) for pair in data]
        if not pairs:
            raise DataError("no examples")
        inputs, targets = (torch.cat(part) for part in zip(*pairs, strict=True))
    if len(inputs) != len(targets):
        raise DataError("inputs and targets differ in length", value=(len(inputs), len(targets)))
    if not len(inputs):
        raise DataError("no examples")
    return inputs, targets


def draw_batches(
    data: Data, batch: int, count: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """`count` batches (count, batch, ...), each drawn without replacement.

    Raises `DataError` for a batch size below 1 or above the number of examples.
    """
    inputs, targets = gather(data)
    if not 1 <= batch <= len(inputs):
        raise DataError("impossible batch size", value=batch, expected=f"1 to {len(inputs)}")
    picked = torch.stack(
        [torch.randperm(len(inputs), generator=generator)[:batch] for _ in range(count)]
    ).to(inputs.device)
    return inputs[picked], targets[picked]


@dataclass(frozen=True)
class Lanczos:
    """What Lanczos found of k operators (or of one operator from k starting vectors).

    Attributes:
        values: Ritz values, ascending.
        weights: squared first components of the eigenvectors of T: weights of the quadrature of
            the starting vector's spectral measure; they sum to 1.
        residuals: bound on |H y - value y|, so that an eigenvalue lies within it of `values`.
        basis: orthonormal vectors.
        rotations: eigenvectors of T in columns.
    """

    values: Float[Tensor, "k steps"]
    weights: Float[Tensor, "k steps"]
    residuals: Float[Tensor, "k steps"]
    basis: Float[Tensor, "k steps size"]
    rotations: Float[Tensor, "k steps steps"]

    def vectors(self, index: int) -> Float[Tensor, "k size"]:
        """Ritz vectors of the `index`-th Ritz value (-1 is the largest) of each operator."""
        columns = self.rotations[:, :, index].to(self.basis)
        return torch.einsum("ks,ksp->kp", columns, self.basis)


def lanczos(
    apply: Product,
    start: Float[Tensor, "k size"],
    steps: int,
    until: Callable[[Lanczos], bool] | None = None,
) -> Lanczos:
    """Lanczos tridiagonalisation of k problems side by side, fully re-orthogonalised.

    A subspace that closes is continued with a fresh orthogonal vector, coupled by zero: values stay
    eigenvalues, and weights of what the starting vector does not see are zero.

    Args:
        apply: (k, size) vectors -> (k, size) products of symmetric operators.
        start: a starting vector each, not zero.
        steps: size of the Krylov space; at most `size` are taken.
        until: asked every ten steps, with what there is by then, whether that is enough.
    """
    count, size = start.shape
    steps = min(steps, size)
    if steps < 1:
        raise DataError("Lanczos needs at least one step", value=steps)
    basis = start.new_zeros(count, steps, size)
    diagonal, coupling = start.new_zeros(2, count, steps)
    fresh = torch.Generator().manual_seed(0)
    vector = start / start.norm(dim=1, keepdim=True)
    for step in range(steps):
        basis[:, step] = vector
        product = apply(vector)
        diagonal[:, step] = (product * vector).sum(dim=1)
        product = product - diagonal[:, step, None] * vector
        if step:
            product = product - coupling[:, step - 1, None] * basis[:, step - 1]
        product = _orthogonal(product, basis[:, : step + 1])
        norms = product.norm(dim=1)
        closed = norms <= _closing(diagonal, coupling, step)
        coupling[:, step] = torch.where(closed, 0.0, norms)
        taken = slice(0, step + 1)
        if until is not None and (step + 1) % 10 == 0:
            found = _ritz(diagonal[:, taken], coupling[:, taken], basis[:, taken])
            if until(found):
                return found
        if step + 1 < steps:
            if closed.any():
                noise = torch.randn(count, size, generator=fresh).to(product)
                for _ in range(2):
                    noise = _orthogonal(noise, basis[:, : step + 1])
                product = torch.where(closed[:, None], noise, product)
            vector = product / product.norm(dim=1, keepdim=True)
    return _ritz(diagonal, coupling, basis)


def _orthogonal(vectors: Tensor, basis: Tensor) -> Tensor:
    """The part of each vector that is orthogonal to the rows of its basis."""
    # Several times as fast as the same two products by `@`.
    shares = torch.einsum("kp,ksp->ks", vectors, basis)
    return vectors - torch.einsum("ks,ksp->kp", shares, basis)


def _closing(diagonal: Tensor, coupling: Tensor, step: int) -> Tensor:
    """Norms that are nothing but rounding, beside the operator's own size."""
    scale = torch.maximum(diagonal.abs().amax(dim=1), coupling.abs().amax(dim=1))
    return 10 * torch.finfo(diagonal.dtype).eps * (step + 1) * scale


def _ritz(diagonal: Tensor, coupling: Tensor, basis: Tensor) -> Lanczos:
    diagonal, coupling = diagonal.double(), coupling.double()
    beside = coupling[:, :-1]
    matrix = torch.diag_embed(diagonal) + sum(torch.diag_embed(beside, at) for at in (1, -1))
    values, rotations = torch.linalg.eigh(matrix)
    residuals = coupling[:, -1:] * rotations[:, -1].abs()
    return Lanczos(values, rotations[:, 0] ** 2, residuals, basis, rotations)


def random_start(
    operator: Operator, count: int, generator: torch.Generator | None = None
) -> Float[Tensor, "count size"]:
    """Rademacher vectors (entries +-1), drawn on the CPU so that every device gets the same."""
    signs = torch.randint(0, 2, (count, operator.size), generator=generator) * 2 - 1
    return signs.to(operator.device, operator.dtype)


@dataclass(frozen=True)
class Extremes:
    """Extremal eigenvalues, largest first, with eigenvectors and residual bounds.

    Attributes:
        values: largest ones descending, then smallest ones descending; the last is the smallest.
        residuals: an eigenvalue lies within this of each value.
        vectors: unit eigenvectors in rows.
    """

    values: Float[Tensor, " k"]
    residuals: Float[Tensor, " k"]
    vectors: Float[Tensor, "k size"]


def extreme_eigenvalues(
    operator: Operator,
    largest: int = 1,
    smallest: int = 0,
    *,
    tolerance: float = 1e-3,
    steps: int = 200,
    generator: torch.Generator | None = None,
    start: Float[Tensor, " size"] | None = None,
) -> Extremes:
    """Extremal eigenvalues of one operator by Lanczos, until their residual bounds are small.

    Args:
        operator: from `hessian_operator` or `ggn_operator`.
        largest, smallest: how many at each end.
        tolerance: residual bound wanted, relative to the largest magnitude.
        steps: products at most; where they do not suffice, a warning names the bound reached.
        generator: draws the start.
        start: a vector to begin with, such as the eigenvector of a little earlier.

    Raises:
        DataError: several operators, or more eigenvalues than parameters.
    """
    if operator.count is not None or not 1 <= max(largest, smallest) <= operator.size:
        raise DataError(
            "cannot give these eigenvalues",
            value=(largest, smallest),
            expected=f"1 to {operator.size} of one operator at either end",
        )
    if start is None:
        start = random_start(operator, 1, generator)[0]
    ends = [*range(-1, -largest - 1, -1), *range(smallest - 1, -1, -1)]

    def bound(found: Lanczos) -> float:
        if found.values.shape[1] < max(largest, smallest):
            return math.inf
        return float(found.residuals[0, ends].max() / found.values.abs().max().clamp_min(1e-300))

    found = lanczos(
        operator.apply,
        start[None].to(operator.dtype),
        steps,
        lambda so_far: bound(so_far) <= tolerance,
    )
    _warn_unless(bound(found), tolerance, found.values.shape[1])
    vectors = torch.stack([found.vectors(end)[0] for end in ends])
    return Extremes(found.values[0, ends], found.residuals[0, ends], vectors)


def _warn_unless(bound: float, tolerance: float, steps: int) -> None:
    if bound > tolerance:
        warnings.warn(
            f"{steps} Lanczos steps leave residual bounds up to {bound:.1g} of the largest "
            f"eigenvalue, {tolerance:g} was asked: more steps help",
            UserWarning,
            stacklevel=3,
        )


def sharpness(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    params: Sequence[str] | None = None,
    chunk: int | None = None,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> float:
    """The largest eigenvalue of the Hessian of the mean loss; see `hessian_operator`."""
    operator = hessian_operator(model, loss, data, params=params, chunk=chunk)
    return float(extreme_eigenvalues(operator, tolerance=tolerance, generator=generator).values[0])


@dataclass(frozen=True)
class SpectralDensity:
    """Stochastic Lanczos quadrature: point masses that estimate the spectral density.

    Attributes:
        nodes: Ritz values from each probe.
        weights: their masses; of each probe they sum to 1.
        residuals: residual bounds of the nodes.
        size: number of eigenvalues.
    """

    nodes: Float[Tensor, "probes steps"]
    weights: Float[Tensor, "probes steps"]
    residuals: Float[Tensor, "probes steps"]
    size: int

    @property
    def largest(self) -> float:
        """The largest node of all."""
        return float(self.nodes.max())

    @property
    def smallest(self) -> float:
        """The smallest node of all."""
        return float(self.nodes.min())

    def mean(self, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """tr f(H) / size, and its standard error over the probes (NaN for one)."""
        values = (self.weights * function(self.nodes)).sum(dim=1)
        return _mean_and_error(values[:, None])[0].item(), _mean_and_error(values[:, None])[
            1
        ].item()

    def density(
        self, grid: Float[Tensor, " points"], width: float
    ) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
        """The density on a grid, and its standard error over the probes.

        Args:
            grid: eigenvalues.
            width: standard deviation of the Gaussian in the place of each point mass.
        """
        distance = (grid[None, :, None] - self.nodes[:, None, :]) / width
        kernel = torch.exp(-(distance**2) / 2) / (width * math.sqrt(2 * math.pi))
        return _mean_and_error((kernel * self.weights[:, None, :]).sum(dim=2))

    def cumulative(
        self, grid: Float[Tensor, " points"]
    ) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
        """Share of eigenvalues at or below each grid point, and its standard error."""
        below = self.nodes[:, None, :] <= grid[None, :, None]
        return _mean_and_error((below * self.weights[:, None, :]).sum(dim=2))


def _mean_and_error(values: Float[Tensor, "probes points"]) -> tuple[Tensor, Tensor]:
    if len(values) < 2:
        return values.mean(dim=0), torch.full_like(values[0], math.nan)
    return values.mean(dim=0), values.std(dim=0) / math.sqrt(len(values))


def spectral_density(
    operator: Operator,
    *,
    steps: int = 60,
    probes: int = 10,
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    """Spectral density of one operator, from Lanczos on random probes all at once.

    The quadrature of Golub and Meurant as Lin, Saad and Yang (2016) average it: with Rademacher
    probes the mass at Ritz value theta_j is the squared first component tau_j^2.
    """
    if operator.count is not None:
        raise DataError("spectral density is of one operator", value=operator.count)
    if probes < 1:
        raise DataError("at least one probe is needed", value=probes)
    found = lanczos(operator.apply, random_start(operator, probes, generator), steps)
    return SpectralDensity(found.values, found.weights, found.residuals, operator.size)


@dataclass(frozen=True)
class BatchSpectra:
    """Extremal eigenvalues of the curvature of random batches.

    Attributes:
        batch: examples in each.
        largest, smallest: extremal eigenvalues of each batch.
        residuals: the larger of their two residual bounds.
        vectors: unit eigenvectors of `largest`.
    """

    batch: int
    largest: Float[Tensor, " count"]
    smallest: Float[Tensor, " count"]
    residuals: Float[Tensor, " count"]
    vectors: Float[Tensor, "count size"]

    def overlaps(self, vector: Float[Tensor, " size"]) -> Float[Tensor, " count"]:
        """Squared cosine between a vector and the top eigenvector of each batch."""
        return (self.vectors @ (vector / vector.norm())) ** 2


def batch_spectra(
    kind: Kind,
    model: nn.Module,
    loss: Loss,
    data: Data,
    batch: int,
    *,
    count: int = 24,
    steps: int = 60,
    tolerance: float = 1e-2,
    params: Sequence[str] | None = None,
    scale: Float[Tensor, " size"] | None = None,
    generator: torch.Generator | None = None,
) -> BatchSpectra:
    """Extremal eigenvalues of `count` random batches, by one Lanczos run over all of them.

    Args:
        batch: examples in a batch, drawn without replacement.
        count: number of batches; their graphs are in memory together.
        steps: Lanczos steps at most; fewer where all residual bounds are within `tolerance` of the
            batch's largest magnitude, a warning where they are not.
        scale: S of S H S, as of a preconditioner.
        model, loss, data, params: see `hessian_operator`.
    """
    inputs, targets = draw_batches(data, batch, count, generator)
    operator = batch_operators(kind, model, loss, inputs, targets, params=params)
    if scale is not None:
        operator = operator.scaled(scale)

    def bound(found: Lanczos) -> float:
        size = found.values.abs().amax(dim=1).clamp_min(1e-300)
        return float((found.residuals[:, [0, -1]].amax(dim=1) / size).max())

    found = lanczos(
        operator.apply,
        random_start(operator, count, generator),
        steps,
        lambda so_far: bound(so_far) <= tolerance,
    )
    _warn_unless(bound(found), tolerance, found.values.shape[1])
    return BatchSpectra(
        batch,
        found.values[:, -1],
        found.values[:, 0],
        found.residuals[:, [0, -1]].amax(dim=1),
        found.vectors(-1),
    )
