"""The full tensor of P-body couplings, for what pattern space cannot hold: noise in its entries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numba
import numpy as np
from jaxtyping import Float, Int, Int8

from peira.memory.dense_hebbian.examples import draw_patterns

MOST_ENTRIES = 4_000_000


@dataclass(frozen=True)
class CouplingTensor:
    """One entry per set of P distinct spins: N^P / P! numbers.

    Attributes:
        couplings: J_A of each set A, so that H = - sum_A J_A prod_{i in A} sigma_i.
        members: the spins of each set, ascending.
        sets: the sets of each spin.
    """

    couplings: Float[np.ndarray, " entries"]
    members: Int[np.ndarray, "entries P"]
    sets: Int[np.ndarray, "spins sets"]


def coupling_tensor(patterns: Int8[np.ndarray, "K N"], P: int) -> CouplingTensor:
    """J_A = N^(1-P) sum_mu prod_{i in A} xi_i^mu, formed entry by entry.

    Raises:
        ValueError: a tensor of more than 4,000,000 entries.
    """
    N = patterns.shape[1]
    entries = math.comb(N, P)
    if entries > MOST_ENTRIES:
        raise ValueError(f"{entries:,} couplings for N = {N}, P = {P}: {MOST_ENTRIES:,} at most")
    flat = (spin for chosen in combinations(range(N), P) for spin in chosen)
    members = np.fromiter(flat, np.int16, entries * P).reshape(entries, P)
    order = np.argsort(members.T.ravel(), kind="stable") % entries
    sets = order.reshape(N, -1).astype(np.int32)
    couplings = _products(patterns, members) * float(N) ** (1 - P)
    return CouplingTensor(couplings, members, sets)


def tensor_heat_bath(
    tensor: CouplingTensor,
    states: Int8[np.ndarray, "replicas spins"],
    beta: float,
    sweeps: int,
    rng: np.random.Generator,
) -> Int8[np.ndarray, "replicas spins"]:
    """Heat bath in random order that sums N^(P-1) / (P-1)! couplings for each spin."""
    spins = np.array(states, dtype=np.int8)
    for state in spins:
        orders = np.array([rng.permutation(len(state)) for _ in range(sweeps)])
        chances = rng.random((sweeps, len(state)))
        _simulate(state, tensor.couplings, tensor.members, tensor.sets, beta, orders, chances)
    return spins


def measure_tolerated_noise(
    P: int,
    N: int,
    K: int,
    rng: np.random.Generator,
    target: float = 0.8,
    networks: int = 8,
    replicas: int = 2,
    sweeps: int = 12,
) -> float:
    """Noise omega per pattern at which the mean overlap falls to `target`, at T = 0.

    J_A = N^(1-P) sum_mu (prod xi^mu + omega zeta^mu_A) with independent normal zeta. The same
    networks and noise serve all omega; NaN where m is below `target` without noise.

    Args:
        P, N, K: spins per coupling, spins, patterns.
        rng: draws patterns, noise and updates.
        target: overlap that counts as retrieved.
        networks: drawn.
        replicas: patterns retrieved in each.
        sweeps: of the heat bath, from the pattern.
    """
    replicas = min(replicas, K)
    problems = []
    for _ in range(networks):
        patterns = draw_patterns(K, N, rng)
        tensor = coupling_tensor(patterns, P)
        # The sum of K independent normal numbers, drawn at once.
        noise = rng.normal(size=len(tensor.couplings)) * math.sqrt(K) * float(N) ** (1 - P)
        problems.append((patterns[:replicas], tensor, noise))
    seed = int(rng.integers(2**63))

    def overlap(omega: float) -> float:
        updates = np.random.default_rng(seed)
        total = 0.0
        for targets, tensor, noise in problems:
            noisy = CouplingTensor(tensor.couplings + omega * noise, tensor.members, tensor.sets)
            states = tensor_heat_bath(noisy, targets, math.inf, sweeps, updates)
            total += float((states * targets).mean())
        return total / networks

    if overlap(0.0) < target:
        return math.nan
    low, high = 0.0, 1.0
    while overlap(high) >= target:
        low, high = high, 2 * high
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (middle, high) if overlap(middle) >= target else (low, middle)
    return (low + high) / 2


@numba.njit(cache=True)
def _products(patterns, members):  # type: ignore[no-untyped-def]
    couplings = np.zeros(len(members))
    for entry in range(len(members)):
        for mu in range(len(patterns)):
            product = 1
            for spin in members[entry]:
                product *= patterns[mu, spin]
            couplings[entry] += product
    return couplings


@numba.njit(cache=True)
def _simulate(spins, couplings, members, sets, beta, orders, chances):  # type: ignore[no-untyped-def]
    products = np.ones(len(members))
    for entry in range(len(members)):
        for spin in members[entry]:
            products[entry] *= spins[spin]
    for sweep in range(len(orders)):
        for i in orders[sweep]:
            h = 0.0
            for entry in sets[i]:
                h += couplings[entry] * products[entry]
            h *= spins[i]
            argument = 0.0 if h == 0.0 else 2 * beta * h
            up = chances[sweep, i] * (1.0 + np.exp(-argument)) < 1.0
            if up != (spins[i] > 0):
                spins[i] = -spins[i]
                for entry in sets[i]:
                    products[entry] = -products[entry]
