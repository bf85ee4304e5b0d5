"""What a paper says, as data: `card.toml` checked against a schema."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from peira.engine.errors import CardError, nearest

Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]

# The statistical tests that a claim can name; `engine.verdict` has one function for each.
TESTS = (
    "above", "against_controls", "all_of", "at_least", "below", "count", "equals", "equivalent",
    "exactly", "larger", "power_law", "rate", "smaller", "sooner", "trend",
)  # fmt: skip

# Marks what the author of a new paper has to write.
BLANK = "FILL IN"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Published(_Strict):
    """The number the paper gives, and where."""

    value: float | None = None
    text: str = ""
    where: Text


class Test(_Strict):
    """How a claim, or one part of it, is judged; fixed before the run."""

    # pytest would take the class for a test case because of its name.
    __test__ = False

    test: Text
    threshold: float | None = None
    tolerance: float | None = Field(None, ge=0)
    unit: str = ""

    def model_post_init(self, _: object) -> None:
        if self.test not in TESTS:
            raise ValueError(f"test: unknown test {self.test!r}; {nearest(self.test, TESTS)}")


class Claim(Test):
    """One statement of the paper that a study can judge."""

    id: Annotated[str, StringConstraints(pattern=r"^[A-Z]\d+[a-z]?$")]
    statement: Text
    published: Published
    parts: tuple[Part, ...] = ()


class Part(Claim):
    """One of several conditions that a claim asks for; inherits what it does not say."""

    id: str = ""
    statement: str = ""
    published: Published = Published(where="see the claim")


class Finding(_Strict):
    """Where paper, official code and our measurement disagree."""

    title: Text
    evidence: Text
    switch: str = ""


class Card(_Strict):
    """What a paper claims and what Peira found: the one source for words about it."""

    number: int = Field(ge=0)
    slug: Slug
    title: Text
    field: Slug
    authors: tuple[Text, ...] = Field(min_length=1)
    year: int = Field(ge=1900, le=2100)
    source: Text
    code: str = ""
    summary: Text
    abstract: tuple[Text, ...] = Field(min_length=1)
    data: tuple[Text, ...] = Field(min_length=1)
    extras: tuple[str, ...] = ()
    public: tuple[str, ...] = Field(min_length=1)
    example: Text
    claims: tuple[Claim, ...] = Field(min_length=1)
    findings: tuple[Finding, ...] = ()

    def claim(self, id: str) -> Claim:
        """The claim with that id; raises `CardError` when the card has none."""
        for claim in self.claims:
            if claim.id == id:
                return claim
        raise CardError(f"{self.slug}: card.toml has no claim {id!r}; {nearest(id, self.ids())}")

    def ids(self) -> list[str]:
        """Ids of all claims, in the card's order."""
        return [claim.id for claim in self.claims]

    @model_validator(mode="before")
    @classmethod
    def _no_blanks(cls, values: Any) -> Any:
        blank = _blank(values)
        if blank:
            raise ValueError(f"still a blank: {blank!r}; say it and take the mark away")
        return values

    def model_post_init(self, _: object) -> None:
        ids = self.ids()
        double = next((id for id in ids if ids.count(id) > 1), None)
        if double:
            raise ValueError(f"claims: id {double!r} is there twice")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a `card.toml`.

        Raises `CardError` naming the file, the key and what was expected there.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CardError(f"{path}: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise CardError(f"{path}: not valid TOML: {error}") from error
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise CardError(f"{path}: {explain(error)}") from error


def _blank(value: Any) -> str:
    """The first text that `peira new` left for a person to fill in."""
    if isinstance(value, str):
        return value if BLANK in value else ""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((blank for blank in map(_blank, inside) if blank), "")


def explain(error: ValidationError) -> str:
    """The first problem of a pydantic error in one line: key, what is wrong, value."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    got: Any = first.get("input")
    shown = "" if first["type"] == "missing" or isinstance(got, dict) else f"; got {got!r}"
    more = error.error_count() - 1
    rest = f" (and {more} more)" if more else ""
    return f"{key + ': ' if key else ''}{message}{shown}{rest}"
