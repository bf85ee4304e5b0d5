"""The replica-symmetric picture: order parameters, both branches, free energies, phase diagram.

Units: J0 = 1/P!, so a fully retrieved pattern gives each spin the field 1/(P-1)!, and temperatures
are measured by that. The load is alpha = K / N^(P-1).

The field on a spin is a (1 + sqrt(rho) z) + s x with normal z and x. Averages of tanh over x are
taken as averages over a logistic variable u, tanh(h/T) = E_u[sign(h + T u)], which leaves error
functions and one smooth integral that is exact down to T = 0. C = (1 - q) / T replaces the overlap
q of two replicas because it stays finite there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq, minimize
from scipy.special import erf, erfinv

from peira.memory.dense_hebbian.examples import Examples, Mode
from peira.memory.spins import fixed_point, gauss_hermite

Vector = Float[np.ndarray, " n"]

# Trapezoidal sums of such smooth integrands are exact to 1e-10 at this step.
LOGISTIC = np.arange(-13.0, 13.01, 0.4)
LOGISTIC_WEIGHTS = 0.4 * 0.5 / np.cosh(LOGISTIC) ** 2
NODES, WEIGHTS = gauss_hermite(61)
# From here on a fixed point is no retrieval but noise of the iteration.
SMALL = 1e-3


@dataclass(frozen=True)
class OrderParameters:
    """A solution of the self-consistency equations.

    Attributes:
        m: overlap with the pattern, which the network never saw.
        n: overlap with the examples, (r/R) (1/(NM)) sum eta sigma.
        q: overlap of two replicas.
        free_energy: per spin, in units where J0 = 1/P!.
    """

    m: float
    n: float
    q: float
    free_energy: float


@dataclass(frozen=True)
class _Data:
    """What the quality of the data does to a spin's field: attenuation, and disorder over sites."""

    attenuation: float
    rho: float
    values: Vector
    probabilities: Vector


def order_parameters(
    P: int, alpha: float = 0.0, T: float = 0.0, data: Examples | float = 0.0
) -> OrderParameters:
    """The retrieval solution: fixed point reached from the pattern itself.

    Args:
        P: how many spins interact.
        alpha: load K / N^(P-1).
        T: temperature, in units where J0 = 1/P!.
        data: quality and number of the examples (their averages are binomial), or the entropy
            rho of many examples (averages are normal; supervised).

    Returns:
        m = n = 0 where retrieval has died (then q and the free energy are the glass's).

    Raises:
        ValueError: P outside 2..6, alpha, T or rho below 0.
    """
    _check(P, alpha, T)
    found = _data(P, data)
    start = np.array([[1 + found.rho, 0.0]])
    point = fixed_point(
        lambda x: _update(x, P, alpha, T, found), start, tol=1e-11, steps=20_000
    ).points
    overlap, C = point[0]
    if overlap < SMALL:
        f, q = glass(P, alpha, T)
        return OrderParameters(0.0, 0.0, q, f)
    a = _signal(point[:, 0], P, found)
    s = _noise(point[:, 1], P, alpha, T)
    m = _response(a, s, T, found)[0]
    f = _free_energy(point[:, 0], point[:, 1], P, alpha, T, found)
    return OrderParameters(
        float(m[0]), float(overlap / (1 + found.rho)), float(1 - T * C), float(f[0])
    )


@dataclass(frozen=True)
class Branches:
    """All retrieval solutions at one temperature: the load as a function of the signal.

    Attributes:
        alpha: load at which a solution is there; it rises to the critical load and falls again.
        m: overlap with the pattern.
        q: overlap of two replicas.
        free_energy: per spin.
        stable: on the branch that reaches back to alpha = 0 with the larger overlap.
    """

    alpha: Vector
    m: Vector
    q: Vector
    free_energy: Vector
    stable: np.ndarray


def branches(P: int, T: float = 0.0, data: Examples | float = 0.0, points: int = 400) -> Branches:
    """Both retrieval branches, stable and unstable, from one parametric solution.

    A given signal fixes, with its own equation, the noise at which it maintains itself, and the
    noise fixes the load. No iteration slows down at the spinodal, where the branches meet.
    """
    _check(P, 0.0, T)
    found = _data(P, data)
    # Small loads move the overlap by exponentially little.
    top = _top(P, T, found)
    if top <= SMALL:
        nothing = np.empty(0)
        return Branches(nothing, nothing, nothing, nothing, np.empty(0, bool))
    below = np.concatenate([[0.0], np.geomspace(1e-10, 1 - SMALL, points - 1)])
    overlap = top * (1 - below)
    alpha, m, C = _load_of(overlap, P, T, found)
    good = np.isfinite(alpha)
    overlap, alpha, m, C = (values[good] for values in (overlap, alpha, m, C))
    peak = _first_peak(alpha)
    f = _free_energy(overlap, C, P, alpha, T, found)
    return Branches(alpha, m, 1 - T * C, f, np.arange(len(alpha)) <= peak)


def critical_load(P: int, T: float = 0.0, data: Examples | float = 0.0) -> float:
    """The spinodal alpha_c: the largest load K / N^(P-1) at which a pattern can be retrieved.

    0 where the temperature alone, or the data, already forbids it.
    """
    _check(P, 0.0, T)
    found = _data(P, data)
    top = _top(P, T, found)
    if top <= SMALL:
        return 0.0
    low, high = SMALL * top, top
    for points in (120, 80):
        grid = np.linspace(high, low, points)
        alphas = _load_of(grid, P, T, found)[0]
        best = _first_peak(alphas)
        low, high = grid[min(best + 1, points - 1)], grid[max(best - 1, 0)]
    return float(alphas[best])


def glass(P: int, alpha: float, T: float, steps: int = 0) -> tuple[float, float]:
    """Free energy per spin and overlap q of the state without retrieval.

    Args:
        P, alpha, T: see `order_parameters`.
        steps: of replica-symmetry breaking, 0 or 1 (1 for P > 2 only).

    Returns:
        Free energy, and q: 0 in the paramagnet. Of several solutions the one of highest free energy
        is taken, as Guerra's bound says.
    """
    if alpha == 0:
        return -T * math.log(2), 0.0
    if steps == 1 and P > 2:
        return _one_step(P, alpha, T)
    solutions = []
    if T > 0:
        solutions.append((float(_free_energy(*_still(1 / T), P, alpha, T, None)[0]), 0.0))
    C = _frozen(P, alpha, T)
    if 1 - T * C > SMALL:
        solutions.append((float(_free_energy(*_still(C), P, alpha, T, None)[0]), 1 - T * C))
    return max(solutions)


def phase_diagram(
    P: int,
    data: Examples | float = 0.0,
    alphas: Sequence[float] | Vector = (),
    Ts: Sequence[float] | Vector = (),
    steps: int = 0,
) -> pd.DataFrame:
    """Overlap and phase on a grid of loads and temperatures.

    Args:
        P: how many spins interact.
        data: examples, or the entropy rho.
        alphas: loads K / N^(P-1); none means 25 values up to the critical load at T = 0.
        Ts: temperatures; none means 20 values up to where retrieval dies at alpha = 0.
        steps: of replica-symmetry breaking in the free energy of the glass, 0 or 1.

    Returns:
        One row per point: alpha, T, m, free_energy, glass_free_energy and phase: "retrieval"
        (lowest free energy), "metastable" (retrieval is there but not the lowest), "glass" or
        "paramagnet".
    """
    _check(P, 0.0, 0.0)
    loads = np.asarray(alphas, float) if len(alphas) else _default_loads(P, data)
    temperatures = np.asarray(Ts, float) if len(Ts) else _default_temperatures(P, data)
    _check(P, float(loads.min()), float(temperatures.min()))
    rows = []
    for T in temperatures:
        there = branches(P, float(T), data)
        # Rising load for interpolation: along the stable branch from the critical load downwards.
        up = np.argsort(there.alpha[there.stable])
        known = [values[there.stable][up] for values in (there.alpha, there.m, there.free_energy)]
        for alpha in loads:
            f_glass, q = glass(P, float(alpha), float(T), steps)
            m, f = 0.0, math.nan
            if len(known[0]) and known[0][-1] >= alpha:
                m = float(np.interp(alpha, known[0], known[1]))
                f = float(np.interp(alpha, known[0], known[2]))
            name = "glass" if q > 0 else "paramagnet"
            if m > SMALL:
                name = "retrieval" if f <= f_glass else "metastable"
            rows.append((float(alpha), float(T), m, f, f_glass, name))
    columns = ["alpha", "T", "m", "free_energy", "glass_free_energy", "phase"]
    return pd.DataFrame(rows, columns=columns)


def retrieval_temperature(P: int, data: Examples | float = 0.0) -> float:
    """The temperature above which no pattern is retrieved even at alpha = 0."""
    found = _data(P, data)
    cold, hot = 0.0, 2.0 / math.factorial(P - 1)
    while hot - cold > 1e-5 * hot:
        middle = (cold + hot) / 2
        cold, hot = (middle, hot) if _top(P, middle, found) > SMALL else (cold, middle)
    return cold


def dense_examples_needed(
    r: float,
    P: int,
    target: float = 0.95,
    mode: Mode = "supervised",
    alpha: float = 0.0,
    T: float = 0.0,
    most: int = 10**7,
) -> int:
    """The smallest number M of examples per pattern with which m reaches `target`.

    Averages over examples count as normal, so that the answer does not jump with the parity of M.

    Raises:
        ValueError: the target is out of reach with any number of examples up to `most`.
    """
    if not 0 < target < 1:
        raise ValueError(f"the target overlap must lie between 0 and 1, not {target:g}")
    _check(P, alpha, T)

    def reached(M: int) -> bool:
        data = Examples(r, M, mode)
        return _overlap(P, alpha, T, _normal(P, data)) >= target

    high = 1
    while not reached(high):
        high *= 2
        if high > most:
            best = order_parameters(P, alpha, T).m
            raise ValueError(
                f"m = {target:g} is not reached with {most:,} examples of quality {r:g}: with the "
                f"patterns themselves m is {best:.3f} at load {alpha:g} and temperature {T:g}"
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def tolerated_noise(P: int, N: int, K: int, target: float = 0.8) -> float:
    """Noise omega per pattern in the tensor of couplings at which m falls to `target`, at T = 0.

    The noise of K patterns adds alpha omega^2 / (P-1)! to the variance of the field, beside the
    interference of the patterns: for P > 2 the load counts as alpha (1 + omega^2). NaN where m is
    below `target` without noise.
    """
    _check(P, 0.0, 0.0)
    alpha = K / float(N) ** (P - 1)
    m = np.concatenate([[target], np.linspace(target, 1, 2000)[1:-1]])
    # Each overlap fixes the noise in the field, and the noise what is left for omega.
    s = m ** (P - 1) / math.factorial(P - 1) / (math.sqrt(2) * erfinv(m))
    if P == 2:
        C = math.sqrt(2 / math.pi) / s * np.exp(-((m / s) ** 2) / 2)
        with np.errstate(divide="ignore"):
            squares = s**2 / alpha - 1 / np.where(C < 1, 1 - C, 0) ** 2
    else:
        squares = s**2 * math.factorial(P - 1) / alpha - 1
    largest = float(squares.max())
    return math.sqrt(largest) if largest >= 0 else math.nan


def _check(P: int, alpha: float, T: float) -> None:
    if P not in (2, 3, 4, 5, 6):
        raise ValueError(f"P must be 2, 3, 4, 5 or 6, not {P}")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"the load alpha must be 0 or more, not {alpha:g}")
    if not (math.isfinite(T) and T >= 0):
        raise ValueError(f"the temperature must be 0 or more, not {T:g}")


def _data(P: int, data: Examples | float) -> _Data:
    if isinstance(data, Examples):
        return _Data(data.attenuation(P), data.rho, *data.sites())
    if not (math.isfinite(data) and data >= 0):
        raise ValueError(f"the entropy rho of the data must be 0 or more, not {data:g}")
    return _Data((1 + data) ** (-P / 2), float(data), np.empty(0), np.empty(0))


def _normal(P: int, data: Examples) -> _Data:
    return _Data(data.attenuation(P), data.rho, np.empty(0), np.empty(0))


def _overlap(P: int, alpha: float, T: float, found: _Data) -> float:
    """m of the retrieval solution."""
    start = np.array([[1 + found.rho, 0.0]])
    point = fixed_point(lambda x: _update(x, P, alpha, T, found), start, steps=5000).points
    a, s = _signal(point[:, 0], P, found), _noise(point[:, 1], P, alpha, T)
    return float(_response(a, s, T, found)[0][0])


def _signal(overlap: Vector, P: int, found: _Data) -> Vector:
    return found.attenuation * overlap ** (P - 1) / math.factorial(P - 1)


def _noise(C: Vector, P: int, alpha: float | Vector, T: float) -> Vector:
    q = np.clip(1 - T * C, 0, 1)
    s = np.sqrt(alpha * q ** (P - 1) / math.factorial(P - 1))
    # Patterns that are not retrieved follow the state and feed back on it: only for pairs.
    return s / np.maximum(1 - C, 1e-9) if P == 2 else s


def _update(
    points: Float[np.ndarray, "points 2"], P: int, alpha: float, T: float, found: _Data | None
) -> Float[np.ndarray, "points 2"]:
    """Right-hand sides for (ntilde, C). Without data: the glass, where there is no signal."""
    overlap, C = points.T
    s = _noise(C, P, alpha, T)
    if found is None:
        return np.stack([np.zeros_like(s), _moments(np.zeros_like(s), s, T)[1]], axis=1)
    _, new, susceptibility = _response(_signal(overlap, P, found), s, T, found)
    return np.stack([new, susceptibility], axis=1)


def _response(a: Vector, s: Vector, T: float, found: _Data) -> tuple[Vector, Vector, Vector]:
    """m, ntilde and C of spins whose field has signal a and noise s."""
    if not len(found.values):
        m, C = _moments(a, np.sqrt(s**2 + found.rho * a**2), T)
        # Stein's lemma: E[z tanh] is the mean slope times the factor of z.
        return m, m + found.rho * a * C, C
    m, overlap, C = np.zeros_like(a), np.zeros_like(a), np.zeros_like(a)
    for value, probability in zip(found.values, found.probabilities, strict=True):
        mean, slope = _moments(a * value, s, T)
        m += probability * mean
        overlap += probability * value * mean
        C += probability * slope
    return m, overlap, C


def _moments(a: Vector, s: Vector, T: float) -> tuple[Vector, Vector]:
    """E[tanh(h/T)] and E[1 - tanh^2(h/T)] / T for h normal with mean a and deviation s."""
    mean, slope = np.empty_like(a), np.empty_like(a)
    wide = s > T / 2
    if T == 0:
        # Without noise a spin follows its field; what has no field at all has no mean.
        mean[~wide], slope[~wide] = np.sign(a[~wide]), 0.0
        c = a[wide] / s[wide]
        mean[wide] = erf(c / math.sqrt(2))
        slope[wide] = math.sqrt(2 / math.pi) / s[wide] * np.exp(-(c**2) / 2)
        return mean, slope
    c = (a[wide, None] + T * LOGISTIC) / s[wide, None]
    mean[wide] = erf(c / math.sqrt(2)) @ LOGISTIC_WEIGHTS
    slope[wide] = math.sqrt(2 / math.pi) / s[wide] * (np.exp(-(c**2) / 2) @ LOGISTIC_WEIGHTS)
    t = np.tanh((a[~wide, None] + s[~wide, None] * NODES) / T)
    mean[~wide], slope[~wide] = t @ WEIGHTS, (1 - t**2) @ WEIGHTS / T
    return mean, slope


def _entropic(a: Vector, s: Vector, T: float) -> Vector:
    """T E[ln 2 cosh(h/T)] for h normal with mean a and deviation s; E|h| at T = 0."""
    out = np.empty_like(a)
    wide = s > T / 2
    u, weights = (np.zeros(1), np.ones(1)) if T == 0 else (LOGISTIC, LOGISTIC_WEIGHTS)
    c = (a[wide, None] + T * u) / s[wide, None]
    gauss = math.sqrt(2 / math.pi) * np.exp(-(c**2) / 2)
    out[wide] = s[wide] * ((gauss + c * erf(c / math.sqrt(2))) @ weights)
    if T == 0:
        out[~wide] = np.abs(a[~wide])
    else:
        h = np.abs(a[~wide, None] + s[~wide, None] * NODES)
        out[~wide] = (h + T * np.log1p(np.exp(-2 * h / T))) @ WEIGHTS
    return out


def _free_energy(
    overlap: Vector, C: Vector, P: int, alpha: float | Vector, T: float, found: _Data | None
) -> Vector:
    """Replica-symmetric free energy per spin; its derivatives give the equations."""
    s = _noise(C, P, alpha, T)
    q = np.clip(1 - T * C, 0, 1)
    if found is None:
        a, spins = np.zeros_like(s), _entropic(np.zeros_like(s), s, T)
    else:
        a = _signal(overlap, P, found)
        if len(found.values):
            spins = sum(
                p * _entropic(a * v, s, T)
                for v, p in zip(found.values, found.probabilities, strict=True)
            )
        else:
            spins = _entropic(a, np.sqrt(s**2 + found.rho * a**2), T)
    signal = (P - 1) * a * overlap / P
    return signal - spins - _interference(q, C, P, alpha, T)


def _interference(q: Vector, C: Vector, P: int, alpha: float | Vector, T: float) -> Vector:
    """What the other patterns add to minus the free energy, beside their noise in the field."""
    if P == 2:
        # Amit, Gutfreund and Sompolinsky (1985), without self-couplings.
        free = np.maximum(1 - C, 1e-9)
        return -alpha / 2 * (1 + T * np.log(free) - q * (1 - 2 * C) / free**2)
    # (xi(1) - xi(q) - (1 - q) xi'(q)) / 2T with xi = alpha q^P / P!, by the binomial theorem in
    # 1 - q = T C, which has no 0/0 at T = 0.
    terms = sum(math.comb(P, k) * q ** (P - k) * T ** (k - 1) * C**k for k in range(2, P + 1))
    return cast(Vector, alpha / (2 * math.factorial(P)) * terms)


def _frozen(P: int, alpha: float, T: float) -> float:
    """C of the spin glass with the smallest C, so the largest q; 1/T where there is none."""

    def growth(C: Vector) -> Vector:
        return _update(np.stack([np.zeros_like(C), C], axis=1), P, alpha, T, None)[:, 1] - C

    highest = 1 / T if T > 0 else 2 * float(growth(np.zeros(1))[0])
    if P == 2:
        highest = min(highest, 1.0)
    grid = highest * np.linspace(0, 1, 2001)[:-1]
    falls = np.flatnonzero(growth(grid) < 0)
    if not len(falls) or not falls[0]:
        return highest
    first = int(falls[0])
    return float(brentq(lambda C: float(growth(np.array([C]))[0]), grid[first - 1], grid[first]))


def _still(C: float) -> tuple[Vector, Vector]:
    return np.zeros(1), np.array([C])


def _top(P: int, T: float, found: _Data) -> float:
    """The largest ntilde that maintains itself at alpha = 0; 0 where there is none."""

    def gain(overlap: Vector) -> Vector:
        a = _signal(overlap, P, found)
        return _response(a, np.zeros_like(a), T, found)[1] - overlap

    # No ntilde is above E|1 + sqrt(rho) z|.
    grid = math.sqrt(1 + found.rho) * np.linspace(SMALL, 1.001, 1000)
    grows = np.flatnonzero(gain(grid) >= 0)
    if not len(grows):
        return 0.0
    last = int(grows[-1])
    return float(brentq(lambda x: float(gain(np.array([x]))[0]), grid[last], grid[last + 1]))


def _load_of(overlap: Vector, P: int, T: float, found: _Data) -> tuple[Vector, Vector, Vector]:
    """The load at which each ntilde is a solution, with its m and C; NaN where there is none."""
    a = _signal(overlap, P, found)
    low, high = np.zeros_like(a), 10 * a * (1 + found.rho) / overlap
    for _ in range(46):
        s = (low + high) / 2
        # More noise always means less overlap.
        above = _response(a, s, T, found)[1] > overlap
        low, high = np.where(above, s, low), np.where(above, high, s)
    m, reached, C = _response(a, low, T, found)
    q = 1 - T * C
    with np.errstate(invalid="ignore", divide="ignore"):
        alpha = low**2 * math.factorial(P - 1) / q ** (P - 1)
        if P == 2:
            alpha *= np.where(C < 1, 1 - C, np.nan) ** 2
    there = (q > 0) & (np.abs(reached - overlap) < 1e-6)
    return np.where(there, alpha, np.nan), m, C


def _first_peak(alpha: Vector) -> int:
    """Where the load stops to rise as the signal falls from its largest value.

    At low temperatures it rises once more where q is small: states without retrieval.
    """
    known = np.nan_to_num(alpha, nan=0.0)
    fallen = np.flatnonzero(known < 0.999 * np.maximum.accumulate(known))
    return int(np.argmax(known[: fallen[0]] if len(fallen) else known))


def _default_loads(P: int, data: Examples | float) -> Vector:
    return np.linspace(0, critical_load(P, 0.0, data), 25)


def _default_temperatures(P: int, data: Examples | float) -> Vector:
    return np.linspace(0, retrieval_temperature(P, data), 20)


def _one_step(P: int, alpha: float, T: float) -> tuple[float, float]:
    """Free energy and q with one step of replica-symmetry breaking."""
    scale = math.sqrt(alpha / math.factorial(P))
    colds, energies, overlaps = _one_step_table(P)
    # Below the table the glass is frozen: its free energy moves by less than 1e-3 of itself.
    cold = max(T / scale, colds[0])
    if cold > colds[-1]:
        return float(_free_energy(*_still(1 / T), P, alpha, T, None)[0]), 0.0
    return scale * float(CubicSpline(colds, energies)(cold)), float(
        np.interp(cold, colds, overlaps)
    )


@cache
def _one_step_table(P: int) -> tuple[Vector, Vector, Vector]:
    """The glass in units of sqrt(alpha / P!): temperatures up to the paramagnet, f and q.

    f is the largest over q and x of
    -T ln 2 - (T/x) ln E cosh^x(s z / T) - (1 - P q^(P-1) + (1 - x) (P - 1) q^P) / 2T, where
    s^2 = P q^(P-1).
    """
    z = np.linspace(0, 30, 1501)
    log_density = -(z**2) / 2 + math.log(0.04 / math.sqrt(2 * math.pi))
    log_density[0] -= math.log(2)

    def value(point: Vector, cold: float) -> float:
        q, x = point
        s = math.sqrt(P * q ** (P - 1))
        log_cosh = s * z / cold + np.log1p(np.exp(-2 * s * z / cold)) - math.log(2)
        total = np.logaddexp.reduce(log_density + x * log_cosh)
        bracket = 1 - P * q ** (P - 1) + (1 - x) * (P - 1) * q**P
        return float(cold * math.log(2) + cold / x * total + bracket / (2 * cold))

    rows = []
    for cold in np.linspace(0.1, 1.2, 23):
        start = np.array([0.95, min(0.9, 0.9 * cold)])
        bounds = [(1e-3, 1), (1e-6, 1)]
        found = minimize(value, start, (cold,), "L-BFGS-B", bounds=bounds)
        if found.fun >= cold * math.log(2) + 1 / (2 * cold) - 1e-9:
            break
        rows.append((cold, -found.fun, found.x[0]))
    colds, energies, overlaps = np.array(rows).T
    return colds, energies, overlaps
