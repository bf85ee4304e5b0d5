"""Techniques of several papers on one network: each alone, each pair, and all at once.

What these tests measure is the table of docs/combinations.md, kept in docs/combinations.json;
`pytest tests/test_combinations.py --record` writes it anew.
"""

from __future__ import annotations

import json
import sys
import warnings
from itertools import combinations
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from peira.data import digit_pictures
from peira.explain import GSAE, ActivationStore, SAERecipe
from peira.nn import slim
from peira.nn.evaluation import evaluating

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "combinations.json"
sys.path.insert(0, str(ROOT / "examples"))

from one_network import IMAGE, TECHNIQUES, architecture, train  # noqa: E402

SETS = [
    (),
    *((one,) for one in TECHNIQUES),
    *combinations(TECHNIQUES, 2),
    # All papers of the example with local blocks off and on, then magnitude masks as well.
    TECHNIQUES[:3],
    TECHNIQUES[:4],
    TECHNIQUES,
]


def name(techniques: tuple[str, ...]) -> str:
    return " + ".join(techniques) or "none"


@pytest.mark.parametrize("techniques", SETS, ids=name)
def test_techniques_train_one_plain_network(
    techniques: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    with warnings.catch_warnings():
        # Twelve epochs do not always make all gates agree.
        warnings.filterwarnings("ignore", "only .* of the gates are unanimous")
        result = train(techniques, samples=1000)
    # Chance is 0.1.
    assert result.accuracy >= 0.6

    plain = slim(architecture(), result.kept)
    plain.load_state_dict(result.network.state_dict(), strict=True)
    x = torch.rand(5, *IMAGE)
    with evaluating(plain), evaluating(result.network):
        assert torch.equal(plain(x), result.network(x))
    assert any(channels is None for channels in result.kept.values()) == ("gates" in techniques)
    pruned = any(bool((w == 0).any()) for w in result.network.parameters() if w.ndim == 4)
    assert pruned == ("masks" in techniques)

    if request.config.getoption("--record"):
        record(name(techniques), round(result.accuracy, 2))
    assert abs(recorded()[name(techniques)] - result.accuracy) < 0.15


def test_a_dictionary_explains_a_network_that_all_of_them_trained() -> None:
    """What gates, masks and local blocks leave behind is a plain network, also for hooks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "only .* of the gates are unanimous")
        network = train(TECHNIQUES, samples=1000).network
    split = digit_pictures(torch.Generator().manual_seed(0), train=1000)
    learnt = list(zip(split.train_inputs.split(250), split.train_labels.split(250), strict=True))
    unseen = [(split.test_inputs, split.test_labels)]
    store = ActivationStore.from_model(network, "stem", learnt)
    dictionary = GSAE(h=32, k=4, mode="additive").fit(store, recipe=SAERecipe(steps=300))
    measured = dictionary.faithfulness(network, "stem", unseen)
    # Four of 32 units, found on the training pictures, keep most of what the stem told the rest.
    assert measured.recovered("none") > 0.5
    with dictionary.steer(network, "stem", unit=0, strength=5.0):
        pushed = network(split.test_inputs)
    assert not torch.equal(pushed, network(split.test_inputs))


def test_the_table_has_every_combination() -> None:
    assert list(recorded()) == [name(techniques) for techniques in SETS]


def recorded() -> dict[str, float]:
    found = json.loads(TABLE.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def record(key: str, accuracy: float) -> None:
    with FileLock(TABLE.with_suffix(".lock")):
        known = recorded() if TABLE.exists() else {}
        known[key] = accuracy
        ordered = {k: known[k] for k in map(name, SETS) if k in known}
        TABLE.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
    TABLE.with_suffix(".lock").unlink(missing_ok=True)
