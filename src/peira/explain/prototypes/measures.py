"""What a study wants to know of trained prototypes: do they look like data, are they loyal."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from peira.explain.prototypes.explanation import contributions, deletion_test, nearest
from peira.explain.prototypes.model import PrototypeNetwork, squared_distances
from peira.nn import evaluating

# What "as near as training pictures are to each other" means.
PERCENTILE, MARGIN = 0.95, 1.5
NEIGHBOURS = 5
# R1 is the nearest input of a batch: it falls with the batch's size.
R1_BATCHES = (10, 50, 250)
CHUNK = 512


class Sets(NamedTuple):
    """Pictures (n, channels, height, width) in [0, 1] and labels: to train, to watch, to test."""

    train: Float[Tensor, "n c h w"]
    train_labels: Int[Tensor, " n"]
    watch: Float[Tensor, "v c h w"]
    watch_labels: Int[Tensor, " v"]
    test: Float[Tensor, "t c h w"]
    test_labels: Int[Tensor, " t"]

    def to(self, device: torch.device) -> Sets:
        """The same on another device."""
        return Sets(*(part.to(device) for part in self))


def encoded(network: PrototypeNetwork, images: Float[Tensor, "n ..."]) -> Float[Tensor, "n q"]:
    """Latents of a whole set."""
    with evaluating(network):
        return torch.cat([network.encode(part) for part in images.split(CHUNK)])


def network_report(network: PrototypeNetwork, sets: Sets, batch: int) -> dict[str, float]:
    """All numbers of one trained network.

    Args:
        network: trained.
        sets: undeformed pictures; only `test_` numbers use the test set.
        batch: inputs of a training step, over which `r1` is taken.

    Returns:
        Accuracies, the terms at the end, what decoded prototypes look like, how loyal the
        explanation is, and the deletion test.
    """
    latents, tested = encoded(network, sets.train), encoded(network, sets.test)
    prototypes, weight = network.prototypes.detach(), network.weight.detach()
    with evaluating(network):
        pictures = network.pictures()
        error = [
            (network.decode(z) - x).square().flatten(1).sum(1)
            for z, x in zip(tested.split(CHUNK), sets.test.split(CHUNK), strict=True)
        ]
    distances = squared_distances(tested, prototypes)
    logits = distances @ weight
    deleted = deletion_test(distances, weight)
    return {
        "test_accuracy": float((logits.argmax(1) == sets.test_labels).double().mean()),
        "test_reconstruction": float(torch.cat(error).mean()),
        **latent_terms(latents, prototypes, batch),
        **look(pictures, network.prototype_classes(), sets),
        "additive_error": additive_error(tested, prototypes, weight, logits),
        **{f"deleted_{name}": share for name, share in deleted.items()},
        "top_over_random": deleted["top"] - deleted["random"],
        "lead_over_random": deleted["lead"] - deleted["random"],
    }


def latent_terms(
    latents: Float[Tensor, "n q"], prototypes: Float[Tensor, "m q"], batch: int
) -> dict[str, float]:
    """R1 over batches of several sizes and the whole set, R2, and R1 beside the latents' spread."""
    distances = squared_distances(latents, prototypes)

    def r1(size: int) -> float:
        size = min(size, len(distances))
        batches = distances[: len(distances) // size * size].unflatten(0, (-1, size))
        return float(batches.min(dim=1).values.mean())

    spread = float((latents - latents.mean(dim=0)).square().sum(1).mean())
    return {
        "r1": r1(batch),
        **{f"r1_{size}": r1(size) for size in R1_BATCHES},
        "r1_whole": r1(len(distances)),
        "r1_relative": r1(batch) / spread,
        "r2": float(distances.min(dim=1).values.mean()),
        "r2_relative": float(distances.min(dim=1).values.mean()) / spread,
    }


def look(
    pictures: Float[Tensor, "m c h w"], classes: Int[Tensor, " m"], sets: Sets
) -> dict[str, float]:
    """Whether pictures of prototypes look like training pictures, and of their class.

    Returns:
        `picture_distance`: mean distance (root of the summed squares) to the nearest training
        picture; `worst_picture`: the largest, in units of 1.5 times the 95th percentile of the
        distance from a training picture to the nearest other one; `knn_agrees`: share of
        prototypes to which 5 nearest training pictures give the class that its weights do;
        `classes_covered`: share of classes that have a prototype.
    """
    train, decoded = sets.train.flatten(1), pictures.flatten(1)
    apart, _ = nearest(decoded, train)
    usual = nearest(train, train, skip_self=True)[0].quantile(PERCENTILE)
    knn = KNeighborsClassifier(NEIGHBOURS).fit(train.cpu().numpy(), sets.train_labels.cpu().numpy())
    said = torch.from_numpy(knn.predict(decoded.cpu().numpy()))
    present = sets.train_labels.unique()
    return {
        "picture_distance": float(apart.mean()),
        "worst_picture": float(apart.max() / (MARGIN * usual)),
        "knn_agrees": float((said == classes.cpu()).double().mean()),
        "classes_covered": float(torch.isin(present, classes).double().mean()),
    }


def additive_error(
    latents: Float[Tensor, "n q"],
    prototypes: Float[Tensor, "m q"],
    weight: Float[Tensor, "m classes"],
    logits: Float[Tensor, "n classes"],
) -> float:
    """Largest difference of explained and computed logits, relative to the largest logit.

    The explanation is recomputed in double precision from the differences of the vectors, not from
    the distances that the network used.
    """
    exact = (latents.double()[:, None] - prototypes.double()).square().sum(2)
    explained = contributions(exact, weight.double()).sum(dim=1)
    return float((explained - logits).abs().max() / logits.abs().max())
