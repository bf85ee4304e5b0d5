"""English-like sentences from a small grammar, letter by letter, and a network that reads them.

The verb agrees with its subject across what stands between them ("the dogs near the old house
run"): a feature of the context that is small among all activations and decides the next letter.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from peira.nn import TinyGPT

NOUNS = ("dog", "cat", "poet", "girl", "king", "bird")
ADJECTIVES = ("old", "tiny", "quiet", "red")
DETERMINERS = {False: ("the", "a", "this"), True: ("the", "some", "these")}
RESTING = ("run", "sleep", "sing", "think")
ACTING = ("see", "follow", "help", "like")
PLACES = ("near", "behind")
ADVERBS = ("today", "often")
ALPHABET = " .abcdefghijklmnopqrstuvwxyz"


def sentence(draw: random.Random, plural: bool | None = None) -> str:
    """One sentence, with a full stop; its main subject's number is drawn unless it is given."""
    plural = draw.random() < 0.5 if plural is None else plural
    words = [*_noun_phrase(draw, plural)]
    kind = draw.random()
    if kind < 0.3:
        words += [draw.choice(PLACES), *_noun_phrase(draw, draw.random() < 0.5)]
    elif kind < 0.5:
        words += ["that", _verb(draw, ACTING, plural), *_noun_phrase(draw, draw.random() < 0.5)]
    if draw.random() < 0.5:
        words += [_verb(draw, ACTING, plural), *_noun_phrase(draw, draw.random() < 0.5)]
    else:
        words += [_verb(draw, RESTING, plural)]
    if draw.random() < 0.3:
        words += [draw.choice(ADVERBS)]
    return " ".join(words) + "."


def _noun_phrase(draw: random.Random, plural: bool) -> list[str]:
    adjective = [draw.choice(ADJECTIVES)] if draw.random() < 0.4 else []
    noun = draw.choice(NOUNS) + ("s" if plural else "")
    return [draw.choice(DETERMINERS[plural]), *adjective, noun]


def _verb(draw: random.Random, verbs: Sequence[str], plural: bool) -> str:
    return draw.choice(verbs) + ("" if plural else "s")


def text_tokens(letters: int, seed: int) -> Int[Tensor, " letters"]:
    """Sentences one after the other, cut at `letters`; a token is a place in `ALPHABET`."""
    draw = random.Random(seed)
    parts: list[str] = []
    length = 0
    while length < letters:
        parts.append(sentence(draw) + " ")
        length += len(parts[-1])
    return encode("".join(parts)[:letters])


def encode(text: str) -> Int[Tensor, " letters"]:
    """Tokens of a text in lower-case letters, spaces and full stops."""
    return torch.tensor([ALPHABET.index(letter) for letter in text])


def decode(tokens: Int[Tensor, " letters"]) -> str:
    """The text of tokens."""
    return "".join(ALPHABET[token] for token in tokens.tolist())


def reader(context: int = 64, width: int = 64, layers: int = 2, heads: int = 4) -> TinyGPT:
    """An untrained network for these letters."""
    return TinyGPT(len(ALPHABET), context, width, layers, heads)


def train_reader(
    network: TinyGPT,
    tokens: Int[Tensor, " letters"],
    steps: int,
    batch: int,
    generator: torch.Generator,
    watch: Callable[[Sequence[Any]], Iterable[int]] | None = None,
    learning_rate: float = 3e-3,
) -> list[float]:
    """Train on random crops of a text; AdamW, warm-up over a tenth, cosine decay. Gives losses."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01,
                                  fused=True)  # fmt: skip
    losses: dict[str, list[float]] = {"train": []}
    plain = range(1, steps + 1)
    device = next(network.parameters()).device
    for step in watch([network, optimizer, losses]) if watch else plain:
        warm = min(1.0, step / (0.1 * steps))
        rate = learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        some = crops(tokens, batch, network.context + 1, generator).to(device)
        loss = language_loss(network(some[:, :-1]), some[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses["train"] = [*losses["train"], float(loss.detach())]
    return losses["train"]


def crops(
    tokens: Int[Tensor, " letters"], count: int, length: int, generator: torch.Generator
) -> Int[Tensor, "count length"]:
    """Pieces of a text that start anywhere."""
    starts = torch.randint(len(tokens) - length + 1, (count, 1), generator=generator)
    return tokens[starts + torch.arange(length)]


def language_loss(
    logits: Float[Tensor, "batch time classes"], targets: Int[Tensor, "batch time"]
) -> Float[Tensor, ""]:
    """Mean cross entropy, nats per letter."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
