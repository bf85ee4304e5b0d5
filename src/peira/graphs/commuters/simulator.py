"""Cities with indicators and commuters whose causes are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import expit

from peira.graphs.commuters import geo
from peira.graphs.commuters.table import ODTable

CENTRE = (-50.0, -15.0)
"""Longitude and latitude of the middle of the simulated country, degrees."""
SIDE_KM = 1000.0
LOADINGS = {
    "population": (1.0, 0.0),
    "gdp_per_capita": (0.3, 0.7),
    "unemployment": (0.2, -0.5),
    "family_income": (0.3, 0.8),
    "sanitation": (0.4, 0.6),
    "illiteracy": (-0.2, -0.8),
    "child_labour": (0.0, -0.5),
    "homicides": (0.4, -0.3),
    "elderly_population": (-0.2, 0.4),
    "female_share": (0.2, 0.1),
}
"""Indicator -> its correlations with (size, wealth) of a city in the Gaussian copula."""
EXPONENTS = {
    "origin": 0.8,
    "destination": 0.9,
    "gdp_per_capita": 0.7,
    "unemployment": 1.2,
    "distance": 2.0,
}
"""True effects: see `simulate_commuters`."""
NOISE = 0.6


def simulate_commuters(
    rng: np.random.Generator, places: int = 400, density: float = 0.05
) -> ODTable:
    """A simulated country: `places` cities, 11 urban indicators, and commuters between them.

    F_ij ~ Poisson(lambda_ij) with

    lambda_ij = c P_i^0.8 P_j^0.9 G_j^0.7 exp(1.2 (u_i - u_j)) d_ij^-2 exp(N(0, 0.6^2)),

    P population (log-normal, sigma 1.1), G GDP per head, u the standard normal score of the
    unemployment rate, d distance in km. The constant c gives links, F_ij > 0, to a share
    `density` of the ordered pairs. Cities stand in a Thomas cluster process on 1000 x 1000 km.
    The indicators follow a Gaussian copula with loadings on size and wealth (`LOADINGS`); total,
    female and male population and GDP are near copies of each other, as they are in a census.

    Args:
        rng: source of randomness.
        places: number of cities.
        density: expected share of ordered pairs with commuters.
    """
    x, y = _thomas_process(rng, places)
    lon, lat = geo.from_plane(x - SIDE_KM / 2, y - SIDE_KM / 2, *CENTRE)
    score = _scores(rng, places)
    table = _indicators(score).assign(id=[f"c{n:04d}" for n in range(places)], lon=lon, lat=lat)
    net = ODTable(table)
    pairs = net.pairs("all")
    i, j = pairs.T
    km = np.maximum(net.distance_km(pairs), 1.0)
    log_rate = (
        EXPONENTS["origin"] * np.log(table["population"].to_numpy())[i]
        + EXPONENTS["destination"] * np.log(table["population"].to_numpy())[j]
        + EXPONENTS["gdp_per_capita"] * np.log(_gdp_per_capita(score))[j]
        + EXPONENTS["unemployment"] * (score["unemployment"][i] - score["unemployment"][j])
        - EXPONENTS["distance"] * np.log(km)
        + rng.normal(0, NOISE, len(pairs))
    )
    flow = rng.poisson(np.exp(log_rate + _constant(log_rate, density)))
    linked = flow > 0
    flows = pd.DataFrame(
        {
            "origin": net.ids[i[linked]],
            "destination": net.ids[j[linked]],
            "flow": flow[linked].astype(float),
        }
    )
    return ODTable(table, flows)


def _thomas_process(
    rng: np.random.Generator, places: int
) -> tuple[Float[np.ndarray, " places"], Float[np.ndarray, " places"]]:
    """Points about parents (one for ten cities), with a spread of 50 km, on the closed square."""
    parents = rng.uniform(0, SIDE_KM, (max(places // 10, 1), 2))
    children = parents[rng.integers(len(parents), size=places)] + rng.normal(0, 50.0, (places, 2))
    # Reflection keeps the cities inside without thinning the border.
    inside = SIDE_KM - np.abs(np.mod(children, 2 * SIDE_KM) - SIDE_KM)
    return inside[:, 0], inside[:, 1]


def _scores(rng: np.random.Generator, places: int) -> dict[str, Float[np.ndarray, " places"]]:
    size, wealth = rng.normal(size=(2, places))
    return {
        name: a * size + b * wealth + np.sqrt(max(1 - a * a - b * b, 0)) * rng.normal(size=places)
        for name, (a, b) in LOADINGS.items()
    }


def _gdp_per_capita(score: dict[str, Any]) -> Float[np.ndarray, " places"]:
    return 15_000 * np.exp(0.6 * score["gdp_per_capita"])


def _indicators(score: dict[str, Any]) -> pd.DataFrame:
    """The 11 indicators in their units: people, money, rates in [0, 1]."""
    population = 20_000 * np.exp(1.1 * score["population"])
    female = population * np.clip(0.5 + 0.01 * score["female_share"], 0, 1)
    return pd.DataFrame(
        {
            "population": population,
            "female_population": female,
            "male_population": population - female,
            "gdp": population * _gdp_per_capita(score),
            "family_income": 600 * np.exp(0.5 * score["family_income"]),
            "unemployment": expit(-2.5 + 0.5 * score["unemployment"]),
            "sanitation": expit(0.5 + score["sanitation"]),
            "illiteracy": expit(-2.0 + 0.6 * score["illiteracy"]),
            "child_labour": expit(-2.5 + 0.5 * score["child_labour"]),
            "homicides": 15 * np.exp(0.6 * score["homicides"]),
            "elderly_population": expit(-2.3 + 0.3 * score["elderly_population"]),
        }
    )


def _constant(log_rate: Float[np.ndarray, " pairs"], density: float) -> float:
    """The log of c for which the expected share of pairs with a commuter is `density`."""
    middle = float(np.median(log_rate))

    def excess(c: float) -> float:
        with np.errstate(over="ignore"):
            return float(-np.expm1(-np.exp(log_rate + c)).mean() - density)

    return float(brentq(excess, -middle - 60, -middle + 60))
