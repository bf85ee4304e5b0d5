"""The classical models of flows: gravity (with its constraints) and radiation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Float, Int
from numba import njit
from scipy import sparse
from scipy.sparse.linalg import lsqr
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from peira.data import DataError
from peira.graphs.commuters.table import ODTable

Deterrence = Literal["power", "exponential"]
Pairs = np.ndarray | Literal["all"]
NEAREST_KM = 0.1
"""Distances are taken as at least this, so that places at one point do not attract infinitely."""
ROWS = 256


class GravityModel(BaseEstimator):
    """Gravity model of flows: masses of both places, and deterrence f by their distance.

    | constraint | T_ij | fitted |
    | --- | --- | --- |
    | "none" | exp(c) m_i^a m_j^b f(d_ij) | c, a, b, f |
    | "origin" | A_i O_i m_j^b f(d_ij), A_i so that sum_j T_ij = O_i | b, f |
    | "doubly" | A_i O_i B_j D_j f(d_ij), sum_j T_ij = O_i and sum_i T_ij = D_j | f |

    f(d) = d^-g ("power") or exp(-d / R) ("exponential"), d in km. The exponents are the maximum
    of the Poisson likelihood of the flows given to `fit`; the constraints enter it as one free
    effect per origin, or per origin and per destination (Wilson 1971; Flowerdew and Aitkin 1982).
    In `predict` they hold over all pairs of the table, or over its links.

    Args:
        constraint: see the table.
        deterrence: "power" or "exponential".
        estimation: "poisson", or for constraint "none" also "log-linear": least squares of
            log(1 + flow) on the logarithms.
        origin_mass, destination_mass: indicators that serve as m_i and m_j; default the totals
            of the table, O_i and D_j.

    Attributes:
        exponents_: "origin" a, "destination" b, "distance" g or 1/R in 1/km, where fitted.
        intercept_: c, for constraint "none".
    """

    def __init__(
        self,
        constraint: Literal["none", "origin", "doubly"] = "none",
        deterrence: Deterrence = "power",
        estimation: Literal["poisson", "log-linear"] = "poisson",
        origin_mass: str | None = None,
        destination_mass: str | None = None,
    ) -> None:
        self.constraint = constraint
        self.deterrence = deterrence
        self.estimation = estimation
        self.origin_mass = origin_mass
        self.destination_mass = destination_mass

    def fit(self, net: ODTable, pairs: Pairs = "all") -> Self:
        """Fit the exponents to the flows of `pairs` (row numbers; "all" n(n - 1) of them).

        Raises:
            DataError: no flow among the pairs, or a flow from or to a place without mass.
        """
        if self.estimation == "log-linear" and self.constraint != "none":
            raise DataError("log-linear estimation knows no constraint", value=self.constraint)
        pairs = net.pairs(pairs)
        flow = net.flows_of(pairs)
        names, features = self._features(net, pairs)
        usable = np.isfinite(features).all(axis=1)
        if (flow[~usable] > 0).any():
            row = int(np.flatnonzero(~usable & (flow > 0))[0])
            raise DataError(
                "a flow from or to a place without mass",
                value=tuple(net.ids[pairs[row]]),
                expected="masses above 0",
            )
        if not flow.sum() > 0:
            raise DataError("no flows to fit to", value=len(flow), expected="pairs with flows")
        pairs, flow, features = pairs[usable], flow[usable], features[usable]
        if self.estimation == "log-linear":
            design = np.column_stack([np.ones(len(flow)), features])
            (self.intercept_, *exponents), *_ = np.linalg.lstsq(design, np.log1p(flow))
        else:
            groups = {"none": [np.zeros(len(flow), int)], "origin": [pairs[:, 0]]}.get(
                self.constraint, [pairs[:, 0], pairs[:, 1]]
            )
            exponents, effects = poisson_regression(features, flow, groups)
            if self.constraint == "none":
                self.intercept_ = float(effects[0][0])
        self.exponents_ = dict(zip(names, map(float, exponents), strict=True))
        return self

    def predict(
        self, net: ODTable, pairs: Pairs = "all", among: Pairs = "all"
    ) -> Float[np.ndarray, " pairs"]:
        """Flows of `pairs`; the totals of a constrained model are those of `net`.

        Args:
            net: places and totals.
            pairs: pairs to predict.
            among: pairs that a constrained model shares the totals out to: all, or the links
                where they are known.

        Raises:
            DataError: a constrained model is asked for a pair outside `among`.
        """
        check_is_fitted(self, "exponents_")
        pairs = net.pairs(pairs)
        if self.constraint == "none":
            names, features = self._features(net, pairs)
            eta = self.intercept_ + features @ np.array([self.exponents_[name] for name in names])
            return np.maximum(np.expm1(eta), 0) if self.estimation == "log-linear" else np.exp(eta)
        if not isinstance(among, str):
            return self._share_among(net, pairs, net.pairs(among))
        if self.constraint == "origin":
            attraction = self._attraction(net)
            return _by_row(net, pairs, lambda rows, km: self._shares(net, attraction, rows, km))
        weights = np.empty((len(net), len(net)))
        for start in range(0, len(net), ROWS):
            rows = np.arange(start, min(start + ROWS, len(net)))
            weights[rows] = self._deter(net.distance_rows(rows))
        np.fill_diagonal(weights, 0.0)
        a, b = furness(weights, net.out_totals, net.in_totals)
        i, j = pairs.T
        return a[i] * weights[i, j] * b[j]

    def _share_among(
        self, net: ODTable, pairs: Int[np.ndarray, "m 2"], among: Int[np.ndarray, "l 2"]
    ) -> Float[np.ndarray, " m"]:
        n = len(net)
        codes = np.sort(among[:, 0] * n + among[:, 1])
        codes = codes[np.r_[True, np.diff(codes) > 0]]
        wanted = pairs[:, 0] * n + pairs[:, 1]
        found = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        if not np.array_equal(codes[found], wanted):
            raise DataError("a pair is not among those that share the totals", expected="in among")
        i, j = np.divmod(codes, n)
        weight = self._deter(net.distance_km(np.column_stack([i, j])))
        if self.constraint == "origin":
            weight *= self._attraction(net)[j]
            flow = _divide(net.out_totals, np.bincount(i, weight, minlength=n))[i] * weight
        else:
            a, b = _balance(weight, i, j, net.out_totals, net.in_totals, np.ones(n), 1e-6)
            flow = a[i] * weight * b[j]
        return flow[found]

    def _attraction(self, net: ODTable) -> Float[np.ndarray, " places"]:
        mass = self._mass(net, 1)
        attraction = np.zeros(len(mass))
        attraction[mass > 0] = mass[mass > 0] ** self.exponents_["destination"]
        return attraction

    def _shares(
        self,
        net: ODTable,
        attraction: Float[np.ndarray, " n"],
        rows: Int[np.ndarray, " block"],
        km: Float[np.ndarray, "block n"],
    ) -> Float[np.ndarray, "block n"]:
        weights = attraction * self._deter(km)
        weights[np.arange(len(rows)), rows] = 0.0
        return net.out_totals[rows, None] * weights / weights.sum(axis=1, keepdims=True)

    def _deter(self, km: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        return np.exp(self.exponents_["distance"] * self._deterrent(km))

    def _deterrent(self, km: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        # With this sign the fitted exponents are positive where distance deters.
        return -np.log(np.maximum(km, NEAREST_KM)) if self.deterrence == "power" else -km

    def _mass(self, net: ODTable, end: Literal[0, 1]) -> Float[np.ndarray, " places"]:
        name = (self.origin_mass, self.destination_mass)[end]
        if name is None:
            return (net.out_totals, net.in_totals)[end]
        if name not in net.indicators:
            raise DataError(f"no indicator {name!r}", expected=f"one of {list(net.indicators)}")
        return net.indicators[name].to_numpy()

    def _features(
        self, net: ODTable, pairs: Int[np.ndarray, "m 2"]
    ) -> tuple[list[str], Float[np.ndarray, " m"]]:
        columns = {"distance": self._deterrent(net.distance_km(pairs))}
        with np.errstate(divide="ignore"):
            if self.constraint == "none":
                columns["origin"] = np.log(self._mass(net, 0))[pairs[:, 0]]
            if self.constraint != "doubly":
                columns["destination"] = np.log(self._mass(net, 1))[pairs[:, 1]]
        return list(columns), np.column_stack(list(columns.values()))


class RadiationModel(BaseEstimator):
    """Radiation model of flows, without parameters (Simini et al., Nature 484, 2012, eq. 2).

    T_ij = O_i m_i m_j / ((m_i + s_ij)(m_i + m_j + s_ij)), where s_ij is the mass within the
    distance d_ij of i, without i and j themselves.

    Args:
        mass: indicator that serves as m, such as the population; default the totals D_j of the
            table (the jobs a place offers).
        finite_size: divide by 1 - m_i / sum(m), so that all O_i arrive somewhere in a finite
            system (Masucci et al. 2013).
    """

    def __init__(self, mass: str | None = None, finite_size: bool = False) -> None:
        self.mass = mass
        self.finite_size = finite_size

    def fit(self, net: ODTable, pairs: Pairs = "all") -> Self:
        """Nothing is estimated; checks the masses. Raises `DataError` for masses below 0."""
        self._mass(net)
        return self

    def predict(self, net: ODTable, pairs: Pairs = "all") -> Float[np.ndarray, " pairs"]:
        """Flows of `pairs`, with the totals O_i of `net`; O(n log n) per origin."""
        mass = self._mass(net)
        outflow = net.out_totals.copy()
        if self.finite_size:
            outflow /= 1 - mass / mass.sum()
        return _by_row(
            net,
            net.pairs(pairs),
            lambda rows, km: outflow[rows, None] * radiation_shares(km, rows, mass),
        )

    def _mass(self, net: ODTable) -> Float[np.ndarray, " places"]:
        if self.mass is None:
            return net.in_totals
        if self.mass not in net.indicators:
            raise DataError(
                f"no indicator {self.mass!r}", expected=f"one of {list(net.indicators)}"
            )
        mass = net.indicators[self.mass].to_numpy()
        if not (mass >= 0).all():
            raise DataError("a mass is missing or negative", column=self.mass, expected="0 or more")
        return mass


def radiation_shares(
    km: Float[np.ndarray, "block n"],
    rows: Int[np.ndarray, " block"],
    mass: Float[np.ndarray, " n"],
) -> Float[np.ndarray, "block n"]:
    """Radiation probabilities from a block of origins to all places, 0 on the diagonal.

    Args:
        km: distances of the origins to all places.
        rows: which places the origins are.
        mass: mass of each place.
    """
    return _shares_outwards(km, np.argsort(km, axis=1), rows, mass)


@njit(cache=True, nogil=True)
def _shares_outwards(
    km: Float[np.ndarray, "block n"],
    order: Int[np.ndarray, "block n"],
    rows: Int[np.ndarray, " block"],
    mass: Float[np.ndarray, " n"],
) -> Any:
    n = mass.shape[0]
    shares = np.zeros((rows.shape[0], n))
    for r in range(rows.shape[0]):
        i = rows[r]
        inside, k = 0.0, 0
        while k < n:
            # Places at the same distance lie in each other's circle.
            end = k
            while end < n and km[r, order[r, end]] == km[r, order[r, k]]:
                if order[r, end] != i:
                    inside += mass[order[r, end]]
                end += 1
            for j in order[r, k:end]:
                if j != i:
                    between = max(inside - mass[j], 0.0)
                    near, far = mass[i] + between, mass[i] + mass[j] + between
                    # The limit of a vanishing origin: all go to the nearest place.
                    stay = mass[i] / near if near > 0 else 1.0
                    shares[r, j] = stay * mass[j] / far if far > 0 else 0.0
            k = end
    return shares


def _by_row(
    net: ODTable,
    pairs: Int[np.ndarray, "m 2"],
    compute: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Float[np.ndarray, " m"]:
    """Values of pairs from a function of (origins, their distances to all), block by block."""
    order = np.argsort(pairs[:, 0], kind="stable")
    origins, starts = np.unique(pairs[order, 0], return_index=True)
    starts = np.append(starts, len(pairs))
    values = np.empty(len(pairs))
    for first in range(0, len(origins), ROWS):
        rows = origins[first : first + ROWS]
        chosen = order[starts[first] : starts[first + len(rows)]]
        block = compute(rows, net.distance_rows(rows))
        values[chosen] = block[np.searchsorted(rows, pairs[chosen, 0]), pairs[chosen, 1]]
    return values


def furness(
    weights: Float[np.ndarray, " m"],
    origin_totals: Float[np.ndarray, " n"],
    destination_totals: Float[np.ndarray, " n"],
    tolerance: float = 1e-8,
    max_iter: int = 1000,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Factors (a, b) so that a_i w_ij b_j has the given row and column sums (Furness 1965).

    Destination totals are scaled to the sum of the origin totals if the sums differ.

    Warns:
        UserWarning: the totals cannot be met, or not within `max_iter` sweeps.
    """
    total = destination_totals.sum()
    wanted = destination_totals * (origin_totals.sum() / total if total else 0.0)
    b = np.ones(len(wanted))
    reach = weights @ b
    for _ in range(max_iter):
        a = _divide(origin_totals, reach)
        b = _divide(wanted, a @ weights)
        reach = weights @ b
        error = np.abs(a * reach - origin_totals).max()
        if error <= tolerance * max(origin_totals.max(), 1e-300):
            return a, b
    warnings.warn(f"row sums are still off by up to {error:.3g}", UserWarning, stacklevel=2)
    return a, b


def _divide(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.divide(x, y, out=np.zeros_like(y), where=y > 0)


def poisson_regression(
    features: Float[np.ndarray, " m"],
    counts: Float[np.ndarray, " m"],
    groups: Sequence[Int[np.ndarray, " m"]],
    tolerance: float = 1e-9,
    max_iter: int = 100,
) -> tuple[Float[np.ndarray, " p"], list[Float[np.ndarray, " groups"]]]:
    """Poisson regression with logarithmic link and one free effect per group.

    counts ~ Poisson(exp(features theta + sum_g effect_g)). Newton's method on the likelihood with
    the effects maximised out, so thousands of groups cost little more than one.

    Args:
        features: without a constant column.
        counts: 0 or more, not necessarily whole.
        groups: one or two groupings, as whole numbers; one grouping of zeros is an intercept.

    Returns:
        theta, and for each grouping its effects by group number (-inf for groups without counts).

    Warns:
        UserWarning: no convergence within `max_iter` steps.
    """
    if len(groups) == 1:
        groups = [groups[0], np.zeros(len(counts), dtype=np.int64)]
    first, second = groups
    sums = [np.bincount(group, weights=counts) for group in groups]
    # A group that never counted fits perfectly with effect -inf and tells nothing about theta.
    alive = (sums[0][first] > 0) & (sums[1][second] > 0)
    first, second, counts = first[alive], second[alive], counts[alive]
    centre = features[alive].mean(axis=0)
    x = features[alive] - centre
    theta = np.zeros(x.shape[1])
    b = np.ones(len(sums[1]))
    best, a, b, mean = _profile(x @ theta, counts, first, second, sums, b)
    for _ in range(max_iter):
        within = _without_effects(x, mean, first, second)
        step = np.linalg.lstsq(within.T @ (mean[:, None] * within), x.T @ (counts - mean))[0]
        size = 1.0
        while True:
            trial = theta + size * step
            value, a, b, mean = _profile(x @ trial, counts, first, second, sums, b)
            if value >= best - 1e-12 * abs(best) or size < 1e-6:
                break
            size /= 2
        theta, best = trial, value
        if np.abs(size * step).max() <= tolerance * (1 + np.abs(theta).max()):
            break
    else:
        warnings.warn("the Poisson regression did not converge", UserWarning, stacklevel=2)
    with np.errstate(divide="ignore"):
        effects = [np.log(a) - centre @ theta, np.log(b)]
    return theta, effects


def _profile(
    eta: Float[np.ndarray, " m"],
    counts: Float[np.ndarray, " m"],
    first: Int[np.ndarray, " m"],
    second: Int[np.ndarray, " m"],
    sums: list[Float[np.ndarray, " groups"]],
    b: Float[np.ndarray, " groups"],
) -> tuple[
    float,
    Float[np.ndarray, " groups"],
    Float[np.ndarray, " groups"],
    Float[np.ndarray, " m"],
]:
    """Log likelihood, factors of both groupings and means, at the best factors for `eta`."""
    top = eta.max()
    weight = np.exp(eta - top)
    a, b = _balance(weight, first, second, *sums, b, 1e-9)
    mean = a[first] * weight * b[second]
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = float(counts @ np.log(mean) - mean.sum())
    return likelihood, a * np.exp(-top), b, mean


@njit(cache=True, nogil=True)
def _balance(
    weight: Float[np.ndarray, " m"],
    first: Int[np.ndarray, " m"],
    second: Int[np.ndarray, " m"],
    first_sums: Float[np.ndarray, " groups"],
    second_sums: Float[np.ndarray, " groups"],
    b: Float[np.ndarray, " groups"],
    tolerance: float,
) -> Any:
    """Furness balancing of a list of weights to the sums of its two groupings."""
    a = np.zeros(first_sums.shape[0])
    b = b.copy()
    for _ in range(5000):
        new = np.zeros(a.shape[0])
        for p in range(weight.shape[0]):
            new[first[p]] += weight[p] * b[second[p]]
        change = 0.0
        for g in range(a.shape[0]):
            new[g] = first_sums[g] / new[g] if new[g] > 0 else 0.0
            change = max(change, abs(new[g] - a[g]) / (new[g] + 1e-300))
        a = new
        total = np.zeros(b.shape[0])
        for p in range(weight.shape[0]):
            total[second[p]] += weight[p] * a[first[p]]
        for g in range(b.shape[0]):
            b[g] = second_sums[g] / total[g] if total[g] > 0 else 0.0
        if change <= tolerance:
            break
    return a, b


def _without_effects(
    x: Float[np.ndarray, " m"],
    weight: Float[np.ndarray, " m"],
    first: Int[np.ndarray, " m"],
    second: Int[np.ndarray, " m"],
) -> Float[np.ndarray, " m"]:
    """Residuals of the columns of `x` in weighted regression on the indicators of the groups."""
    rows, root = np.arange(len(x)), np.sqrt(weight)
    dummies = sparse.hstack(
        [sparse.csr_array((root, (rows, group))) for group in (first, second)], format="csr"
    )
    # Newton's step needs the curvature to a few digits only.
    levels = [lsqr(dummies, root * column, atol=1e-8, btol=1e-8)[0] for column in x.T]
    indicators = sparse.hstack(
        [sparse.csr_array((np.ones(len(x)), (rows, group))) for group in (first, second)]
    )
    return x - indicators @ np.column_stack(levels)
