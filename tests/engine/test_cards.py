"""Cards: every error names file, key and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from peira.engine.cards import Card
from peira.engine.catalogue import Paper, published
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
    assert published(card.claim("C1")) == "0.2 share"
    assert published(card.claim("C2")) == "sooner"


def test_the_kept_copy_is_that_of_the_card_until_it_changes(tmp_path, home, monkeypatch):
    package = tmp_path / "kept_coin"
    package.mkdir()
    (package / "__init__.py").touch()
    card = package / "card.toml"
    card.write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    first = Paper("tiny-coin", "kept_coin")
    assert first.record == Card.read(card).model_dump(mode="json")
    assert first.facts.claims[0].published.value == 0.2
    # The second reader does not check the card again.
    monkeypatch.setattr(Card, "read", None)
    assert Paper("tiny-coin", "kept_coin").record == first.record
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    card.write_text(GOOD.replace("year = 2024", "year = 2019"))
    assert Paper("tiny-coin", "kept_coin").facts.year == 2019
    card.write_text(GOOD.replace("year = 2024", "year = 24"))
    with pytest.raises(CardError, match="got 24"):
        _ = Paper("tiny-coin", "kept_coin").record


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
