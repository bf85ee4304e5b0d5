"""Where a network is cut into local modules: evenly, as published, or by measured memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from peira.data import DataError

# Residual blocks per stage, and for each number of modules K the last block of each module but the
# last: (stage from 1, block in it from 0). Released configurations of InfoPro and of MAN. Module 1
# has the stem as well, so that the K = 16 of ResNet-32 are 15 modules, the 55 of ResNet-110 54.
BLOCKS = {
    "resnet32": (5, 5, 5),
    "resnet110": (18, 18, 18),
    "resnet34": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnext101_32x8d": (3, 4, 23, 3),
}
EVERY = "every block"
PUBLISHED: dict[str, dict[int, str]] = {
    "resnet32": {
        2: "2.1",
        3: "1.4 2.4",
        4: "1.2 2.1 3.0",
        8: "1.0 1.2 1.4 2.1 2.3 3.0 3.2",
        16: EVERY,
    },
    "resnet110": {
        2: "2.8",
        3: "1.17 2.17",
        4: "1.11 2.7 3.3",
        8: "1.4 1.11 2.0 2.7 2.14 3.3 3.10",
        16: "1.1 1.4 1.7 1.10 1.13 1.16 2.1 2.4 2.7 2.11 2.15 3.1 3.5 3.9 3.13",
        32: "1.1 1.2 1.4 1.5 1.7 1.9 1.11 1.13 1.14 1.16 1.17 2.1 2.2 2.4 2.5 2.7 2.9 2.11 2.13 "
        "2.14 2.16 2.17 3.1 3.3 3.4 3.6 3.7 3.9 3.11 3.13 3.15",
        55: EVERY,
    },
    "resnet34": {2: "2.0"},
    "resnet101": {2: "2.0"},
    "resnet152": {2: "2.5"},
    "resnext101_32x8d": {2: "2.0"},
}


def published_partition(network: str, modules: int) -> list[int]:
    """The paper's partition of one of its networks: the last unit of each local module.

    Units are counted from 1 behind the stem, so [7, 15] are blocks 1 to 7 and 8 to 15.

    Args:
        network: resnet32, resnet110, resnet34, resnet101, resnet152 or resnext101_32x8d.
        modules: the paper's K.

    Raises:
        DataError: a network or a K without a published partition.
    """
    if network not in PUBLISHED:
        raise DataError("no published partition", value=network, expected=", ".join(PUBLISHED))
    blocks, table = BLOCKS[network], {1: "", **PUBLISHED[network]}
    if modules not in table:
        raise DataError(
            f"no published partition of {network}", value=f"K = {modules}",
            expected=f"K of {', '.join(map(str, table))}",
        )  # fmt: skip
    if table[modules] == EVERY:
        return list(range(1, sum(blocks) + 1))
    before = [0, *accumulate(blocks)]
    places = [place.split(".") for place in table[modules].split()]
    return [before[int(stage) - 1] + int(block) + 1 for stage, block in places] + [sum(blocks)]


def local_weights(
    modules: int,
    reconstruction: tuple[float, float] = (5.0, 0.0),
    task: tuple[float, float] = (0.0, 1.0),
) -> list[tuple[float, float]]:
    """lambda_1 and lambda_2 of each local module but the last, along a line from first to last.

    The defaults are InfoPro's for ResNet-110 with K = 8.

    Args:
        modules: K.
        reconstruction: lambda_1 of the first and of the last of these modules.
        task: lambda_2 of the first and of the last of these modules.
    """
    ratios = [i / (modules - 2) if modules > 2 else 0.0 for i in range(modules - 1)]
    return [_between(ratio, reconstruction, task) for ratio in ratios]


def released_weights(
    network: str,
    modules: int,
    reconstruction: tuple[float, float] = (5.0, 0.0),
    task: tuple[float, float] = (0.5, 0.0),
) -> list[tuple[float, float]]:
    """lambda_1 and lambda_2 as the released code of MAN computes them.

    Its ratio is the STAGE of the next unit, from 1, over K - 2. With K = 4 and the README's weights
    stage 2 gets none and stage 3 negative ones: such modules unlearn. The defaults are those of its
    command for ResNet-32.

    Args:
        network: as `published_partition`.
        modules: K.
        reconstruction: lambda_1 at ratio 0 and at ratio 1.
        task: lambda_2 at ratio 0 and at ratio 1.
    """
    ends = published_partition(network, modules)[:-1]
    before = list(accumulate(BLOCKS[network]))
    # Unit end + 1 is the next one, and stages are counted from 1.
    stages = [1 + sum(end >= last for last in before) for end in ends]
    ratios = [stage / (modules - 2) if modules > 2 else 0.0 for stage in stages]
    return [_between(ratio, reconstruction, task) for ratio in ratios]


def _between(
    ratio: float, reconstruction: tuple[float, float], task: tuple[float, float]
) -> tuple[float, float]:
    first, second = (a * (1 - ratio) + b * ratio for a, b in (reconstruction, task))
    return first, second


def even_partition(units: int, modules: int) -> list[int]:
    """The last unit of each of `modules` runs of equal length, the shorter ones first.

    Raises `DataError` for more modules than units.
    """
    if not 1 <= modules <= units:
        raise DataError(
            "impossible number of local modules", value=modules,
            expected=f"1 to {units}, the units between the stem and the head",
        )  # fmt: skip
    length, longer = divmod(units, modules)
    sizes = [length + (number >= modules - longer) for number in range(modules)]
    return list(accumulate(sizes))


def checked_partition(ends: Sequence[int], units: int) -> list[int]:
    """`ends`, if they rise and close with the last unit; raises `DataError` otherwise."""
    ends = list(ends)
    rising = all(a < b for a, b in zip([0, *ends], ends, strict=False))
    if not rising or not ends or ends[-1] != units:
        raise DataError(
            "not a partition", value=ends,
            expected=f"the last unit of each module, rising from 1, the last of them {units}",
        )  # fmt: skip
    return ends


def balanced_partition(
    live: Sequence[int], inputs: Sequence[int], auxiliary: Sequence[int], modules: int
) -> list[int]:
    """The partition whose largest module holds the fewest bytes, by dynamic programming.

    Args:
        live: bytes held for the backward pass after the stem and after each unit, the last one
            with the head and the loss; one pass through the whole network.
        inputs: bytes of the output of the stem and of each unit.
        auxiliary: bytes that the auxiliary network behind the stem and behind each unit adds.
        modules: how many.

    Returns:
        The last unit of each module. Among equals, the one whose first modules are shortest.
    """
    units = len(live) - 1
    even_partition(units, modules)

    def cost(start: int, end: int) -> int:
        held = live[end] - (live[start] - inputs[start] if start else 0)
        return held + (auxiliary[end] if end < units else 0)

    # best[end]: lowest peak of the modules so far that end there, and their ends.
    best = {end: (cost(0, end), [end]) for end in range(1, units + 1)}
    for number in range(2, modules + 1):
        best = {
            end: min(
                (max(best[start][0], cost(start, end)), [*best[start][1], end])
                for start in range(number - 1, end)
            )
            for end in range(number, units + 1)
        }
    return best[units][1]
