"""Which configuration is more likely to close: pairwise comparisons of a closure table."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact, norm

from peira.graphs.simplicial_closure.closures import TYPES3

LEAST_SAMPLES = 20
"""Types with this many open configurations or fewer are not compared."""

FEW_CLOSED = 5
"""Up to this many closed configurations on both sides, Fisher's exact test is used."""

LEVEL = 1e-5
"""Significance level of the paper."""

DENSITY3 = (("000", "001"), ("001", "011"), ("002", "012"), ("011", "111"), ("012", "112"),
            ("022", "122"))  # fmt: skip
STRENGTH3 = (("001", "002"), ("011", "012"), ("012", "022"), ("111", "112"), ("112", "122"),
             ("122", "222"))  # fmt: skip
COMPETING3 = (("022", "111"),)
DENSITY4 = (
    *((f"3:{w}", f"4:{w}") for w in "012"),
    *((f"4:{w}", f"5:0{w}") for w in "012"),
    *((f"5:{faces}", f"6:00{faces}") for faces in ("00", "01", "02", "11", "12", "22")),
)
STRENGTH4 = (
    *((f"{edges}:{w}", f"{edges}:{w + 1}") for edges in (3, 4) for w in (0, 1)),
    *((f"5:{a}", f"5:{b}") for a, b in (("00", "01"), ("01", "02"), ("11", "12"), ("12", "22"),
                                        ("01", "11"), ("02", "12"))),
    *((f"6:{a}", f"6:{b}") for a, b in (
        ("0000", "0001"), ("0001", "0002"), ("0011", "0012"), ("0012", "0022"), ("0111", "0112"),
        ("0112", "0122"), ("0122", "0222"), ("1111", "1112"), ("1112", "1122"), ("1122", "1222"),
        ("1222", "2222"), ("0001", "0011"), ("0002", "0012"), ("0011", "0111"), ("0012", "0112"),
        ("0022", "0122"), ("0111", "1111"), ("0112", "1112"), ("0122", "1122"), ("0222", "1222"))),
)  # fmt: skip
COMPETING4 = (("5:22", "6:0111"),)

COMPARISONS = {
    3: {"density": DENSITY3, "strength": STRENGTH3, "competing": COMPETING3},
    4: {"density": DENSITY4, "strength": STRENGTH4, "competing": COMPETING4},
}
"""Pairs of types by number of nodes and by what rises from the first to the second.

In a competing pair the first has stronger ties and the second more of them.
"""


def compare_types(table: pd.DataFrame) -> pd.DataFrame:
    """Test, for every pair of types one step apart, whether the second closes more often.

    One-sided two-proportion z-tests with pooled variance; Fisher's exact test where neither type
    has more than 5 closures. Pairs with 20 or fewer open configurations of either type are left
    out, and so are pairs of which nothing closed at all: they have no direction.

    Args:
        table: a closure table (`closure_table`), of three or of four nodes.

    Returns:
        Columns kind (density, strength, competing), lower, higher (types), p_lower, p_higher
        (closure probabilities), rises (p_higher > p_lower), p_rise and p_fall (one-sided p-values
        of a rise and of a fall).

    Source: Benson et al. 2018, section "Simplicial closure" and Table S2.
    """
    k = 3 if set(table["type"]) == set(TYPES3) else 4
    counts = {row.type: (int(row.c), int(row.n)) for row in table.itertuples()}
    rows = []
    for kind, pairs in COMPARISONS[k].items():
        for lower, higher in pairs:
            (c1, n1), (c2, n2) = counts[lower], counts[higher]
            if min(n1, n2) <= LEAST_SAMPLES or c1 + c2 == 0:
                continue
            rise, fall = _p_values(c1, n1, c2, n2)
            rows.append((kind, lower, higher, c1 / n1, c2 / n2, c2 / n2 > c1 / n1, rise, fall))
    columns = ["kind", "lower", "higher", "p_lower", "p_higher", "rises", "p_rise", "p_fall"]
    return pd.DataFrame(rows, columns=columns)


def _p_values(c1: int, n1: int, c2: int, n2: int) -> tuple[float, float]:
    if max(c1, c2) <= FEW_CLOSED:
        counts = [[c1, n1 - c1], [c2, n2 - c2]]
        return tuple(
            float(fisher_exact(counts, alternative=side).pvalue) for side in ("less", "greater")
        )
    pooled = (c1 + c2) / (n1 + n2)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))
    if error == 0:
        return 1.0, 1.0
    z = (c2 / n2 - c1 / n1) / error
    return float(norm.sf(z)), float(norm.cdf(z))
