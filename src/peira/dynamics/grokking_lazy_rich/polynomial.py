"""The paper's polynomial model: its data, its exact training, its exact test loss.

The network is f(x) = (alpha / N) sum_i phi(w_i.x) with phi(z) = z + (eps / 2) z^2, the inputs are
x ~ N(0, I / D) and the target is (beta.x)^2 / 2. With w^ = (eps w, 1) and x^ = (x, 1)

    f(x) = alpha / (2 eps) (mean_i (w^_i.x^)^2 - 1),

and a step of gradient descent moves all neurons by one and the same linear map of w^. What the
network computes therefore depends on the neurons through mean w^ w^^T alone, that is through the
paper's order parameters wbar = mean w_i and M = mean w_i w_i^T. Any D + 1 vectors with these
moments follow the N neurons exactly, so that a step costs the same for 500 neurons, for 50,000 and
for infinitely many.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from peira.data.errors import DataError
from peira.dynamics.probes import kernel_task_alignment


@dataclass(frozen=True)
class Task:
    """Inputs and targets of the polynomial problem.

    Attributes:
        x, y: training inputs (P, D) and targets (P,).
        x_test, y_test: inputs and targets that are not trained on.
        beta: the teacher's vector (D,), None where the targets are no square.
    """

    x: ndarray
    y: ndarray
    x_test: ndarray
    y_test: ndarray
    beta: ndarray | None = None


def quadratic_task(dimension: int, samples: int, seed: int, tests: int = 1000) -> Task:
    """y = (beta.x)^2 / 2 with x ~ N(0, I / D), beta ~ N(0, I).

    Tasks of one seed share beta and the test inputs, and a smaller task's inputs are the first of
    a larger one's.
    """
    teacher, train, test = (np.random.default_rng([seed, part]) for part in range(3))
    beta = teacher.standard_normal(dimension)
    x = train.standard_normal((samples, dimension)) / dimension**0.5
    x_test = test.standard_normal((tests, dimension)) / dimension**0.5
    return Task(x, (x @ beta) ** 2 / 2, x_test, (x_test @ beta) ** 2 / 2, beta)


def eigenvector_task(
    dimension: int, samples: int, weights: Float[ndarray, "N D"], eps: float, index: int, seed: int
) -> Task:
    """Targets that are an eigenvector of the initial kernel of 2P inputs, half of them to test.

    Args:
        index: of the eigenvector, 1 for the largest eigenvalue, up to 2P. As in the paper's code
            the kernel has its grand mean taken away.
    """
    if not 1 <= index <= 2 * samples:
        raise DataError("eigenvector", value=index, expected=f"1 to {2 * samples}")
    rng = np.random.default_rng([seed, 1])
    x = rng.standard_normal((2 * samples, dimension)) / dimension**0.5
    kernel = tangent_kernel(x, neurons(weights, eps))
    vectors = np.linalg.eigh(kernel - kernel.mean())[1]
    y = vectors[:, -index]
    return Task(x[:samples], y[:samples], x[samples:], y[samples:])


def initial_weights(
    width: int,
    dimension: int,
    seed: int,
    *,
    norm: float = 1.0,
    aligned: float = 0.0,
    solution: Float[ndarray, " D"] | None = None,
) -> Float[ndarray, "N D"]:
    """W ~ N(0, norm^2), or a share of the way from there to weights that solve the task.

    Args:
        aligned: 0 for random weights, 1 for the solution (paper, early alignment): half of the
            neurons at `solution`, half at its negative, so that wbar = 0 and M solves the task.
        solution: beta / sqrt(alpha eps).
    """
    weights = np.random.default_rng([seed, 3]).standard_normal((width, dimension)) * norm
    if not aligned:
        return weights
    if solution is None or width % 2:
        raise DataError("aligned weights", value=width, expected="a solution and an even width")
    signs = np.where(np.arange(width) % 2 == 0, 1.0, -1.0)
    return aligned * signs[:, None] * solution + (1 - aligned) * weights


def neurons(weights: Float[ndarray, "N D"], eps: float) -> Float[ndarray, "D+1 m"]:
    """m <= D + 1 vectors, as columns, whose second moment is that of the N neurons (eps w, 1).

    Where N <= D + 1 they are the neurons themselves, divided by sqrt(N).
    """
    size = len(weights)
    columns = np.vstack([eps * weights.T, np.ones(size)]) / size**0.5
    if columns.shape[1] <= columns.shape[0]:
        return columns
    # A triangular factor of the moments, without squaring their condition number.
    return np.ascontiguousarray(np.linalg.qr(columns.T, mode="r").T)


def infinite_neurons(dimension: int, eps: float, norm: float = 1.0) -> Float[ndarray, "D+1 D+1"]:
    """The same for infinitely many neurons w ~ N(0, norm^2 I): wbar = 0, M = norm^2 I."""
    return np.diag([*[eps * norm] * dimension, 1.0])


def tangent_kernel(
    x: Float[ndarray, "n D"],
    factor: Float[ndarray, "D+1 m"],
    x2: Float[ndarray, "k D"] | None = None,
) -> Float[ndarray, "n k"]:
    """(N / alpha^2) K(x, x') = (x.x') mean_i (1 + eps w_i.x)(1 + eps w_i.x')."""
    other = x if x2 is None else x2
    return (x @ other.T) * ((_homogeneous(x) @ factor) @ (_homogeneous(other) @ factor).T)


@dataclass(frozen=True)
class Components:
    """The three parts of the population loss; `total` is their sum (paper, section 4).

    Attributes:
        variance: [(alpha eps tr M - |beta|^2) / (2 D)]^2, the error in the mean of the output.
        alignment: |alpha eps M - beta beta^T|^2 / (2 D^2), of the quadratic part.
        linear: alpha^2 |wbar|^2 / D, of the linear part.

    With centring M and wbar are counted from their initial values.
    """

    variance: float
    alignment: float
    linear: float

    @property
    def total(self) -> float:
        """The test loss over all inputs x ~ N(0, I / D)."""
        return self.variance + self.alignment + self.linear


def population_loss(
    mean: Float[ndarray, " D"],
    second: Float[ndarray, "D D"],
    beta: Float[ndarray, " D"],
    *,
    alpha: float,
    eps: float,
) -> Components:
    """Exact mean squared error over x ~ N(0, I / D) of a network with these order parameters.

    Args:
        mean: wbar, of a centred network wbar - wbar_0.
        second: M, of a centred network M - M_0.
        beta: the target is (beta.x)^2 / 2.
    """
    return _components(alpha * eps * second - np.outer(beta, beta), alpha * mean)


def _components(quadratic: ndarray, linear: ndarray) -> Components:
    """Of E[(x^T S x / 2 + v.x)^2] with x ~ N(0, I / D)."""
    size = len(linear)
    return Components(
        variance=float((np.trace(quadratic) / (2 * size)) ** 2),
        alignment=float((quadratic * quadratic).sum() / (2 * size**2)),
        linear=float(linear @ linear / size),
    )


class Descent:
    """Full-batch gradient descent of B polynomial networks at once, whatever their widths.

    Args:
        x: inputs, (P, D) for all or (B, P, D).
        y: targets, (P,) or (B, P).
        factor: of each network, from `neurons` or `infinite_neurons`; (D + 1, m) or (B, D + 1, m).
        alpha, eps: output scale and curvature, one number or B. The factor must be made with the
            same eps.
        rate: learning rate in units of N / alpha^2: eta = rate N / alpha^2, which gives every
            alpha the same initial pace.
        decay: share of every weight that is taken off in each step.
        centred: fit f - f_0 instead of f.

    Raises:
        DataError: alpha, eps or rate that is not positive.
    """

    def __init__(
        self,
        x: ndarray,
        y: ndarray,
        factor: ndarray,
        *,
        alpha: float | Sequence[float] | ndarray,
        eps: float | Sequence[float] | ndarray,
        rate: float | Sequence[float] | ndarray,
        decay: float = 0.0,
        centred: bool = True,
    ) -> None:
        for name, value in (("alpha", alpha), ("eps", eps), ("rate", rate)):
            if not np.all(np.asarray(value) > 0):
                raise DataError(name, value=value, expected="greater than 0")
        x, y, factor = _stack(x, 3), _stack(y, 2), _stack(factor, 3)
        self.alpha, self.eps, rates = (
            np.atleast_1d(np.asarray(v, float)) for v in (alpha, eps, rate)
        )
        shape = np.broadcast_shapes(*(v.shape for v in (self.alpha, self.eps, rates)))
        count = max(len(x), len(y), len(factor), *shape)
        self.alpha, self.eps, rates = (
            np.broadcast_to(v, count) for v in (self.alpha, self.eps, rates)
        )
        self.x, self.y, self.centred, self.decay = x, y, centred, decay
        self.inputs = _homogeneous(x)
        self._gain = (self.alpha / (2 * self.eps))[:, None]
        self._pace = (2 * rates * self.eps / (self.alpha * x.shape[1]))[:, None, None]
        self.start = np.array(np.broadcast_to(factor, (count, *factor.shape[1:])))
        self.factor = self.start.copy()
        self._offset = self._squares(self.inputs @ self.start) if centred else 1.0
        self._evaluate()

    def step(self) -> None:
        """One step of every network."""
        self.factor += self.direction()
        self._evaluate()

    def direction(self) -> Float[ndarray, "B D+1 m"]:
        """What a step adds to the factors."""
        change = np.zeros_like(self.factor)
        weighted = self._hidden * self._residual[..., None]
        np.multiply(np.swapaxes(self.x, 1, 2) @ weighted, -self._pace, out=change[:, :-1])
        if self.decay:
            change[:, :-1] -= self.decay * self.factor[:, :-1]
        return change

    @property
    def train_loss(self) -> Float[ndarray, " B"]:
        """Mean squared error on the training data, now."""
        return np.einsum("bp,bp->b", self._residual, self._residual) / self.x.shape[1]

    def predict(self, x: Float[ndarray, "n D"]) -> Float[ndarray, "B n"]:
        """Outputs for other inputs; f - f_0 where centred."""
        inputs = _homogeneous(x)
        offset = self._squares(inputs @ self.start) if self.centred else 1.0
        return self._gain * (self._squares(inputs @ self.factor) - offset)

    def initial(self, x: Float[ndarray, "n D"]) -> Float[ndarray, "B n"]:
        """f_0, the outputs before training, not centred."""
        return self._gain * (self._squares(_homogeneous(x) @ self.start) - 1)

    def order(self, index: int = 0) -> tuple[Float[ndarray, " D"], Float[ndarray, "D D"]]:
        """wbar and M of one network."""
        return _order(self.factor[index], float(self.eps[index]))

    def components(self, beta: Float[ndarray, " D"], index: int = 0) -> Components:
        """The exact population loss of one network in its three parts."""
        mean, second = self.order(index)
        alpha, eps = float(self.alpha[index]), float(self.eps[index])
        if self.centred:
            mean_start, second_start = _order(self.start[index], eps)
            mean, second = mean - mean_start, second - second_start
        return population_loss(mean, second, beta, alpha=alpha, eps=eps)

    def movement(self) -> Float[ndarray, " B"]:
        """|W - W_0|^2 / |W_0|^2 of all N neurons: the paper's measure of laziness."""
        moved = self.factor[:, :-1] - self.start[:, :-1]
        return (moved**2).sum((1, 2)) / (self.start[:, :-1] ** 2).sum((1, 2))

    def norm_ratio(self) -> Float[ndarray, " B"]:
        """|W|^2 / |W_0|^2."""
        return (self.factor[:, :-1] ** 2).sum((1, 2)) / (self.start[:, :-1] ** 2).sum((1, 2))

    def alignment(self, x: Float[ndarray, "n D"], y: Float[ndarray, " n"], index: int = 0) -> float:
        """Centred alignment of the present tangent kernel on inputs x with their targets."""
        kernel = tangent_kernel(x, self.factor[index])
        return kernel_task_alignment(torch.from_numpy(kernel), torch.from_numpy(np.array(y)))

    def largest_stable_rate(self) -> Float[ndarray, " B"]:
        """2 / lambda_max of the loss's curvature at the start, in the units of `rate`."""
        from scipy.sparse.linalg import eigsh

        samples = self.x.shape[1]
        kernels = (
            tangent_kernel(self.x[i % len(self.x)], self.start[i]) for i in range(len(self.start))
        )
        largest = (eigsh(k, 1, v0=np.ones(samples), return_eigenvectors=False) for k in kernels)
        return np.array([samples / float(value[0]) for value in largest])

    def state_dict(self) -> dict[str, Any]:
        """The present state; all else follows from what the descent was made of."""
        return {"factor": self.factor.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`."""
        self.factor = state["factor"].copy()
        self._evaluate()

    def _evaluate(self) -> None:
        self._hidden = self.inputs @ self.factor
        self._residual = self._gain * (self._squares(self._hidden) - self._offset) - self.y

    @staticmethod
    def _squares(hidden: ndarray) -> ndarray:
        return np.einsum("bpm,bpm->bp", hidden, hidden)


def gradient_flow(
    descent: Descent, times: Sequence[float], tolerance: float = 1e-7
) -> Iterator[tuple[float, Float[ndarray, "D+1 m"]]]:
    """The order parameters' differential equation, from the start of one network.

    d(factor)/dt is the step of gradient descent per unit of time, so that time t is step t in the
    limit of small learning rates. Solved by SciPy's Runge-Kutta method of order 8.

    Args:
        descent: of one network (B = 1); left as it is.
        times: increasing, in steps, from 0 on.

    Yields:
        Each time with its factor, which `descent.load_state_dict({"factor": factor[None]})` takes.
        It is solved as far as it is asked for.
    """
    from scipy.integrate import DOP853

    if len(descent.start) != 1:
        raise DataError("gradient flow", value=len(descent.start), expected="one network")
    shape = descent.start[0].shape
    copied = copy.copy(descent)

    def slope(_: float, state: ndarray) -> ndarray:
        copied.load_state_dict({"factor": state.reshape(1, *shape)})
        return copied.direction()[0].ravel()

    solver = DOP853(
        slope, 0.0, descent.start[0].ravel(), float(times[-1]), rtol=tolerance,
        atol=tolerance * 1e-2,
    )  # fmt: skip
    wanted = list(times)
    while wanted:
        if wanted[0] <= solver.t:
            known = solver.y if solver.t == wanted[0] else solver.dense_output()(wanted[0])
            yield wanted.pop(0), known.reshape(shape)
            continue
        problem = solver.step()
        if solver.status == "failed":
            raise DataError("gradient flow", value=problem, expected="a solution")


class LinearisedTwin:
    """The network linearised at its start and trained by the same steps, in closed form.

    Its training residual decays by 1 - 2 rate lambda / P per step along each eigenvector of the
    initial kernel; for infinitely many steps this is regression with that kernel.

    Args:
        descent: the network that it is the twin of.
        index: which of the descent's networks.
    """

    def __init__(self, descent: Descent, index: int = 0) -> None:
        self.x = descent.x[index % len(descent.x)]
        self.start = descent.start[index]
        self.alpha, self.eps = float(descent.alpha[index]), float(descent.eps[index])
        self._initial = None
        if not descent.centred:
            hidden = _homogeneous(self.x) @ self.start
            squares = np.einsum("pm,pm->p", hidden, hidden)
            self._initial = self.alpha / (2 * self.eps) * (squares - 1)
        y = descent.y[index % len(descent.y)]
        self._target = y if self._initial is None else y - self._initial
        self._values, self._vectors = np.linalg.eigh(tangent_kernel(self.x, self.start))
        # pace = 2 rate eps / (alpha P), so this is 2 rate / P.
        self._pace = float(descent._pace[index, 0, 0]) * self.alpha / self.eps

    def coefficients(self, step: float) -> Float[ndarray, " P"]:
        """a with f(x) - f_0(x) = sum_p a_p kappa(x, x_p) after `step` steps (may be infinite)."""
        projected = self._vectors.T @ self._target
        rounding = self._values[-1] * len(self._values) * np.finfo(float).eps
        known = self._values > rounding
        shares = np.zeros_like(self._values)
        left = 1 - self._pace * self._values[known]
        rest = 0.0 if np.isinf(step) else np.sign(left) ** step * np.abs(left) ** step
        shares[known] = (1 - rest) / self._values[known]
        return self._vectors @ (shares * projected)

    def train_loss(self, step: float) -> float:
        """Mean squared error on the training data after `step` steps."""
        kernel_part = self._vectors @ (self._values * (self._vectors.T @ self.coefficients(step)))
        return float(np.mean((kernel_part - self._target) ** 2))

    def predict(self, x: Float[ndarray, "n D"], step: float = np.inf) -> Float[ndarray, " n"]:
        """f - f_0 of the linearised network for other inputs."""
        return tangent_kernel(x, self.start, self.x) @ self.coefficients(step)

    def components(self, beta: Float[ndarray, " D"], step: float = np.inf) -> Components:
        """The exact population loss after `step` steps; at infinity that of kernel regression."""
        a = self.coefficients(step)
        moment = self.start @ self.start.T
        # sum_p a_p (x.x_p) x^_p^T M x^ is a quadratic form in x plus a linear one.
        form = (self.x * a[:, None]).T @ _homogeneous(self.x) @ moment
        quadratic = form[:, :-1] + form[:, :-1].T - np.outer(beta, beta)
        linear = form[:, -1]
        if self._initial is not None:
            mean, second = _order(self.start, self.eps)
            quadratic = quadratic + self.alpha * self.eps * second
            linear = linear + self.alpha * mean
        return _components(quadratic, linear)


def _order(factor: ndarray, eps: float) -> tuple[ndarray, ndarray]:
    moment = factor @ factor.T
    return moment[:-1, -1] / eps, moment[:-1, :-1] / eps**2


def _homogeneous(x: ndarray) -> ndarray:
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)


def _stack(a: ndarray, dimensions: int) -> ndarray:
    a = np.asarray(a, float)
    return a[None] if a.ndim == dimensions - 1 else a
