"""Cards: every error names file, key and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from peira.engine.cards import Card
from peira.engine.errors import CardError

GOOD = (Path(__file__).parents[1] / "plugin/src/peira_tiny/coin/card.toml").read_text()


def read(tmp_path: Path, text: str) -> Card:
    path = tmp_path / "card.toml"
    path.write_text(text)
    return Card.read(path)


def test_a_good_card(tmp_path):
    card = read(tmp_path, GOOD)
    assert card.ids() == ["C1", "C2"]
    assert card.claim("C1").threshold == 0.1
    assert card.claim("C1").published.shown("share") == "0.2 share"
    assert card.claim("C2").published.shown("x") == "sooner"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('slug = "tiny-coin"', 'slug = "Tiny Coin"', "slug"),
        ('slug = "tiny-coin"\n', "", "slug: Field required"),
        ("number = 900", 'number = "many"', "number: Input should be a valid integer"),
        ('test = "larger"', 'test = "lager"', "did you mean 'larger'?"),
        ('id = "C2"', 'id = "C1"', "id 'C1' is there twice"),
        ("threshold = 0.1", "treshold = 0.1", "claims.0.treshold: Extra inputs"),
        (', where = "Table 1" }', " }", "claims.0.published.where: Field required"),
        ("year = 2024", "year = 24", "greater than or equal to 1900; got 24"),
        ('title = "A', 'title = "FILL IN', "still a blank"),
        ("number = 900", "number = ", "not valid TOML"),
    ],
)
def test_a_broken_card_says_where(tmp_path, old, new, said):
    assert old in GOOD
    with pytest.raises(CardError) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert str(tmp_path / "card.toml") in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_claim_that_is_not_there(tmp_path):
    with pytest.raises(CardError, match=r"no claim 'C9'"):
        read(tmp_path, GOOD).claim("C9")
