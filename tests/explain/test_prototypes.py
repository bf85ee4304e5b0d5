"""Prototypes: layers against loops, terms by hand, SciPy's elastic warp, explanations, own data."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import check_grad
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_wine, make_blobs
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from peira.data import DataError, digits, read_record
from peira.engine.catalogue import paper
from peira.explain.prototypes import (
    baselines,
    display,
    elastic,
    explanation,
    figure,
    measures,
    study,
    use,
)
from peira.explain.prototypes import model as models
from peira.explain.prototypes.method import PrototypeClassifier
from peira.explain.prototypes.training import Batches, Recipe, training


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_network(seed: int = 0) -> models.PrototypeNetwork:
    pair = models.conv_autoencoder((1, 8, 8), generator=generator(seed))
    for weights in nn.ModuleList(pair).parameters():
        nn.init.normal_(weights, std=0.2, generator=generator(seed))
    return models.PrototypeNetwork(*pair, (10, 2, 2), 6, 4, generator(seed))


def small_digits(count: int = 120) -> tuple[np.ndarray, np.ndarray]:
    images, labels = digits()
    return (images[:count] / 16).astype(np.float32), labels[:count]


@pytest.fixture(scope="module")
def fitted() -> PrototypeClassifier:
    images, labels = small_digits()
    return PrototypeClassifier(epochs=30, batch_size=40, random_state=0).fit(images, labels)


@pytest.fixture(scope="module")
def wine() -> tuple[pd.DataFrame, np.ndarray]:
    X, y = load_wine(return_X_y=True, as_frame=True)
    return X, np.array(["red", "white", "rose"])[y]


@pytest.fixture(scope="module")
def fitted_table(wine: tuple[pd.DataFrame, np.ndarray]) -> PrototypeClassifier:
    return PrototypeClassifier(6, epochs=150, random_state=0).fit(*wine)


# Counts of parameters and shapes that the official code has.


def test_the_mnist_network_has_the_published_44_153_parameters() -> None:
    encoder, decoder = models.conv_autoencoder((1, 28, 28))
    sizes = [tuple(part(torch.zeros(1, 32 if i else 1, 28, 28)).shape[2:]) for i, part in
             enumerate([encoder[0]])]  # fmt: skip
    assert sizes == [(14, 14)]
    network = models.PrototypeNetwork(encoder, decoder, (10, 2, 2), 15, 10)
    assert [sum(w.numel() for w in part.parameters()) for part in (encoder, decoder, network)] == [
        21_706,
        21_697,
        44_153,
    ]
    x = torch.rand(3, 1, 28, 28)
    assert network.encode(x).shape == (3, 40)
    assert network.pictures().shape == (15, 1, 28, 28)
    sides, shown = [], x
    for layer in encoder:
        shown = layer(shown)
        sides.append(shown.shape[-1])
    assert sides[::2] == [14, 7, 4, 2]
    assert isinstance(encoder[-1], nn.ReLU) and isinstance(decoder[-1], nn.Sigmoid)


def test_initial_weights_are_the_published_ones() -> None:
    encoder, decoder = models.conv_autoencoder((1, 28, 28), generator=generator())
    assert float(encoder[2].weight.detach().std()) == pytest.approx(0.01, rel=0.03)
    assert not any(w.any() for name, w in decoder.named_parameters() if "bias" in name)
    network = models.PrototypeNetwork(encoder, decoder, (10, 2, 2), 15, 10, generator())
    for weights in (network.prototypes.detach(), network.weight.detach()):
        assert 0 <= float(weights.min()) < 0.05 and 0.95 < float(weights.max()) < 1
    # Beside encoder and decoder nothing else is learned: the last layer has no bias.
    own = {name for name, _ in network.named_parameters() if "coder" not in name}
    assert own == {"prototypes", "weight"}


@pytest.mark.parametrize(
    ("side", "padding"), [(28, (0, 1)), (14, (0, 1)), (7, (1, 1)), (4, (0, 1)), (5, (1, 1))]
)
def test_padding_at_stride_two_is_tensorflow_s(side: int, padding: tuple[int, int]) -> None:
    assert models.same_padding(side) == padding


@pytest.mark.parametrize("sides", [(7, 8), (6, 5), (4, 4)])
def test_a_convolution_is_the_sum_it_says(sides: tuple[int, int]) -> None:
    """TensorFlow's definition in loops: output (i, j) reads input (2 i + k - pad, ...)."""
    layer = models.SameConv2d(2, 3)
    x = torch.randn(1, 2, *sides, generator=generator())
    top, left = (models.same_padding(side)[0] for side in sides)
    expected = torch.zeros(1, 3, math.ceil(sides[0] / 2), math.ceil(sides[1] / 2))
    for i in range(expected.shape[2]):
        for j in range(expected.shape[3]):
            total = layer.bias.clone()
            for k in range(3):
                for n in range(3):
                    row, column = 2 * i + k - top, 2 * j + n - left
                    if 0 <= row < sides[0] and 0 <= column < sides[1]:
                        total = total + layer.weight[:, :, k, n] @ x[0, :, row, column]
            expected[0, :, i, j] = total
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("sides", [(28, 28), (7, 8), (5, 6)])
def test_the_transposed_convolution_is_the_adjoint(sides: tuple[int, int]) -> None:
    """<C x, y> = <x, C' y> with the same filters, which TensorFlow's conv2d_transpose is."""
    down, up = models.SameConv2d(2, 3), models.SameConvTranspose2d(3, 2, sides)
    for layer in (down, up):
        layer.requires_grad_(False)
    nn.init.zeros_(down.bias), nn.init.zeros_(up.bias)
    up.weight.data = down.weight.data
    x = torch.randn(1, 2, *sides, generator=generator(1))
    y = torch.randn(down(x).shape, generator=generator(2))
    assert up(y).shape == x.shape
    assert float((down(x) * y).sum()) == pytest.approx(float((x * up(y)).sum()), rel=1e-4)


def test_pictures_of_any_side_are_halved_to_two() -> None:
    assert [models.fitting_layers(side, side) for side in (3, 4, 8, 16, 28, 32, 64)] == [
        1, 1, 2, 3, 4, 4, 5,
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"too small for 4 layers.*at least 9 pixels"):
        models.conv_autoencoder((1, 8, 8), maps=(32, 32, 32, 10))
    with pytest.raises(ValueError, match="at least 3 x 3"):
        models.conv_autoencoder((3, 2, 40))
    encoder, decoder = models.conv_autoencoder((3, 11, 20))
    x = torch.rand(2, 3, 11, 20)
    assert decoder(encoder(x)).shape == x.shape


# The objective.


def test_distances_are_those_of_loops_and_never_negative() -> None:
    a, b = torch.randn(5, 7, generator=generator()), torch.randn(3, 7, generator=generator(1))
    expected = [[float(((x - y) ** 2).sum()) for y in b] for x in a]
    assert torch.allclose(models.squared_distances(a, b), torch.tensor(expected), atol=1e-4)
    far = 1000 + torch.rand(50, 40, generator=generator())
    assert float(models.squared_distances(far, far).min()) == 0


def test_the_four_terms_by_hand() -> None:
    """Sums over pixels, minima over the batch and over prototypes, weights 20 : 1 : 1 : 1."""
    network = tiny_network()
    x = torch.rand(9, 1, 8, 8, generator=generator(3))
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0])
    network.requires_grad_(False)
    terms = models.objective(network, x, labels)
    z, p = network.encode(x).detach().double(), network.prototypes.detach().double()
    w = network.weight.detach().double()
    d = np.array([[float(((a - b) ** 2).sum()) for b in p] for a in z])
    logits = d @ w.numpy()
    chance = np.exp(logits - logits.max(1, keepdims=True))
    chance /= chance.sum(1, keepdims=True)
    cross_entropy = -np.log(chance[np.arange(9), labels.numpy()]).mean()
    decoded = network.decode(network.encode(x)).detach()
    error = np.mean([float(((a - b) ** 2).sum()) for a, b in zip(decoded, x, strict=True)])
    expected = [cross_entropy, error, np.mean(d.min(0)), np.mean(d.min(1))]
    assert [float(term) for term in terms] == pytest.approx(expected, rel=1e-4)
    total = 20 * expected[0] + sum(expected[1:])
    assert float(terms.total()) == pytest.approx(total, rel=1e-4)
    assert float(terms.total((0.0, 0.0, 2.0, 0.0))) == pytest.approx(2 * expected[2], rel=1e-4)
    # The paper's own weights are these divided by 20.
    assert float(terms.total((1.0, 0.05, 0.05, 0.05))) == pytest.approx(total / 20, rel=1e-4)


def test_r1_and_r2_alone_find_the_blobs() -> None:
    """Identity encoder, K blobs: the optimum is k-means with prototypes on data."""
    x, y = make_blobs(300, centers=5, n_features=2, cluster_std=0.3, random_state=0)
    inputs, labels = torch.tensor(x).float(), torch.tensor(y)
    network = models.PrototypeNetwork(nn.Identity(), nn.Identity(), (2,), 5, 5, generator())
    start = torch.stack([inputs[labels == k].mean(0) for k in range(5)])
    network.prototypes.data = start + 0.5 * torch.randn(5, 2, generator=generator())
    recipe = Recipe(epochs=150, batch_size=300, learning_rate=0.03)
    for _ in training(
        network,
        lambda a, b: models.objective(network, a, b).total((0.0, 0.0, 1.0, 1.0)),
        inputs, labels, recipe, generator(),
    ):  # fmt: skip
        pass
    terms = models.objective(network.requires_grad_(False), inputs, labels)
    inertia = KMeans(5, n_init=5, random_state=0).fit(x).inertia_ / len(x)
    assert inertia <= float(terms.r2) < 1.1 * inertia
    assert float(terms.r1) < 0.02 * inertia


def test_batches_are_full_and_every_pass_has_every_row_once() -> None:
    batches = Batches(10, 4, generator())
    drawn = torch.cat([batches.draw() for _ in range(5)])
    assert torch.equal(drawn[:10].sort().values, torch.arange(10))
    assert torch.equal(drawn[10:].sort().values, torch.arange(10))
    state = {name: value.clone() for name, value in batches.state_dict().items()}
    after = [batches.draw().tolist() for _ in range(7)]
    again = Batches(10, 4, generator(5))
    again.load_state_dict(state)
    assert [again.draw().tolist() for _ in range(7)] == after
    assert len(Batches(3, 250, generator()).draw()) == 3
    assert Recipe(1500, 250).steps(55_000) == 330_000
    assert Recipe(7, 250).steps(100) == 7


# Elastic deformation.


@pytest.mark.parametrize(("height", "width"), [(28, 28), (8, 8), (12, 20)])
def test_the_warp_is_scipy_s_on_the_same_noise(height: int, width: int) -> None:
    random = np.random.default_rng(0)
    images = random.random((6, height, width)).astype(np.float32)
    noise = random.uniform(-1, 1, (6, 2, height, width))
    sigma, alpha = 4 * height / 28, 20.0
    expected = []
    for image, (rows, columns) in zip(images, noise, strict=True):
        dx, dy = (gaussian_filter(n, sigma, mode="constant") * alpha for n in (rows, columns))
        grid = np.mgrid[:height, :width] + np.stack([dx, dy])
        expected.append(map_coordinates(image, grid, order=1))
    fields = elastic.displacement(torch.tensor(noise).float(), sigma, alpha)
    found = elastic.warp(torch.tensor(images)[:, None], fields)[:, 0].numpy()
    assert np.abs(np.array(expected) - images).max() > 0.3
    assert np.abs(found - expected).max() < 1e-3
    assert np.abs(found - expected).mean() < 1e-5


def test_deformation_leaves_a_still_field_alone_and_moves_channels_together() -> None:
    images = torch.rand(4, 3, 9, 9, generator=generator())
    assert torch.allclose(elastic.ElasticDeformation(2, 0)(images), images, atol=1e-5)
    same = images[:, :1].expand(-1, 3, -1, -1)
    moved = elastic.ElasticDeformation(2, 20, generator())(same)
    assert torch.equal(moved[:, 0], moved[:, 2])
    assert not torch.allclose(moved, same, atol=0.1)
    assert not torch.allclose(moved[0], moved[1], atol=0.1)
    with pytest.raises(ValueError, match="sigma must be positive"):
        elastic.ElasticDeformation(0)


@pytest.mark.parametrize("side", [8, 14, 56])
def test_the_scaled_field_moves_the_same_share_of_the_side(side: int) -> None:
    """Inside, 0.577 alpha / (2 sqrt(pi) sigma) pixels: 0.81 of 28."""
    assert elastic.ElasticDeformation.fitting(28, 28).sigma == 4
    scaled = elastic.ElasticDeformation.fitting(side, side)
    noise = 2 * torch.rand(400, 2, side, side, generator=generator()) - 1
    middle = elastic.displacement(noise, scaled.sigma, scaled.alpha)[..., side // 2, side // 2]
    published = math.sqrt(1 / 3) * 20 / (2 * math.sqrt(math.pi) * 4)
    assert float(middle.std()) / side == pytest.approx(published / 28, rel=0.1)


# Explanations.


def test_contributions_add_up_and_leads_decide() -> None:
    d = torch.rand(20, 6, generator=generator()) * 9
    w = torch.randn(6, 4, generator=generator(1))
    logits = d @ w
    assert torch.allclose(explanation.contributions(d, w).sum(1), logits, atol=1e-5)
    best = logits.topk(2, dim=1).values
    lead = explanation.leads(d, w)
    assert torch.allclose(lead.sum(1), best[:, 0] - best[:, 1], atol=1e-4)
    # A constant on a row of W changes no probability: nor a lead, but contributions.
    shifted = w + torch.randn(6, 1, generator=generator(2))
    assert torch.allclose(explanation.leads(d, shifted), lead, atol=1e-3)
    assert not torch.allclose(
        explanation.contributions(d, shifted), explanation.contributions(d, w), atol=0.1
    )


def test_deletion_is_what_happens_without_the_row() -> None:
    d = torch.rand(30, 5, generator=generator())
    w = torch.randn(5, 3, generator=generator(1))
    before = (d @ w).argmax(1)
    changed = torch.zeros(30, 5, dtype=torch.bool)
    for j in range(5):
        without = w.clone()
        without[j] = 0
        changed[:, j] = (d @ without).argmax(1) != before
    assert torch.equal(explanation.changed_by_deletion(d, w), changed)
    assert 0 < changed.double().mean() < 1
    rates = explanation.deletion_test(d, w)
    assert rates["random"] == pytest.approx(float(changed.double().mean()))
    rows = torch.arange(30)
    assert rates["nearest"] == pytest.approx(float(changed[rows, d.argmin(1)].double().mean()))
    own = torch.stack([d[i] * w[:, before[i]] for i in range(30)]).argmax(1)
    assert rates["top"] == pytest.approx(float(changed[rows, own].double().mean()))
    margins = explanation.leads(d, w).argmax(1)
    assert rates["lead"] == pytest.approx(float(changed[rows, margins].double().mean()))


def test_nearest_neighbours_by_brute_force() -> None:
    points = torch.randn(70, 5, generator=generator())
    apart = torch.tensor([[float((a - b).norm()) for b in points] for a in points])
    found, rows = explanation.nearest(points, points, skip_self=True, chunk=32)
    apart.fill_diagonal_(torch.inf)
    assert torch.allclose(found, apart.min(1).values, atol=1e-5)
    assert torch.equal(rows, apart.argmin(1))
    itself, rows = explanation.nearest(points[:9], points)
    assert float(itself.max()) == 0 and torch.equal(rows, torch.arange(9))


def test_r1_is_of_batches_and_falls_with_their_size() -> None:
    latents = torch.randn(500, 6, generator=generator())
    prototypes = torch.randn(4, 6, generator=generator(1))
    found = measures.latent_terms(latents, prototypes, 50)
    nearest = [
        min(float(((p - z) ** 2).sum()) for z in latents[start : start + 50])
        for start in range(0, 500, 50)
        for p in prototypes
    ]
    assert found["r1"] == pytest.approx(np.mean(nearest), rel=1e-4)
    assert found["r1"] == found["r1_50"]
    assert found["r1_10"] > found["r1_50"] > found["r1_250"] > found["r1_whole"] > 0
    spread = float((latents - latents.mean(0)).square().sum(1).mean())
    assert found["r2_relative"] == pytest.approx(found["r2"] / spread)


def test_pictures_that_are_training_pictures_look_like_them() -> None:
    images, labels = small_digits()
    x, y = torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))
    sets = measures.Sets(x, y, x, y, x, y)
    rows = torch.tensor([int((y == k).nonzero()[0]) for k in range(10)])
    copies = measures.look(x[rows], y[rows], sets)
    assert copies["picture_distance"] == 0 and copies["worst_picture"] == 0
    assert copies["knn_agrees"] >= 0.8 and copies["classes_covered"] == 1
    noise = measures.look(torch.rand(3, 1, 8, 8, generator=generator()), y[rows[:3]], sets)
    assert noise["worst_picture"] > 1 and noise["classes_covered"] == pytest.approx(0.3)


def test_the_additive_error_sees_a_wrong_distance() -> None:
    network = tiny_network()
    z = network.encode(torch.rand(5, 1, 8, 8, generator=generator())).detach()
    p, w = network.prototypes.detach(), network.weight.detach()
    right = models.squared_distances(z, p) @ w
    assert measures.additive_error(z, p, w, right) < 1e-5
    assert measures.additive_error(z, p, w, models.squared_distances(z, p).sqrt() @ w) > 0.01


# Baselines.


def test_glvq_s_gradient_and_fit() -> None:
    x, y = make_blobs(60, centers=3, n_features=2, random_state=0)
    classes = np.array([0, 0, 1, 2])
    start = np.random.default_rng(0).normal(size=(4, 2)) * 3

    def cost(flat: np.ndarray) -> float:
        return baselines.glvq_cost(flat.reshape(4, 2), classes, x, y)[0]

    def slope(flat: np.ndarray) -> np.ndarray:
        return baselines.glvq_cost(flat.reshape(4, 2), classes, x, y)[1]

    assert check_grad(cost, slope, start.ravel()) < 1e-5
    x, y = make_blobs(200, centers=4, n_features=5, random_state=1)
    model = baselines.GLVQ(6, random_state=0).fit(x, y)
    assert model.score(x, y) == 1
    assert np.bincount(model.prototype_class_).tolist() == [2, 2, 1, 1]
    with pytest.raises(ValueError, match="n_prototypes=2 for 4 classes"):
        baselines.GLVQ(2).fit(x, y)


def test_glvq_is_sklearn_lvq_s() -> None:
    sklearn_lvq = pytest.importorskip("sklearn_lvq")
    x, y = load_wine(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    theirs = sklearn_lvq.GlvqModel(prototypes_per_class=1, random_state=0).fit(x, y)
    ours = baselines.GLVQ(3, random_state=0).fit(x, y)
    classes = theirs.c_w_.astype(int)
    ours_cost = baselines.glvq_cost(ours.prototypes_, np.arange(3), x, y)[0]
    theirs_cost = baselines.glvq_cost(theirs.w_, classes, x, y)[0]
    assert ours_cost <= theirs_cost * 1.02


@pytest.mark.parametrize("classes", [2, 4])
def test_centres_found_afterwards(classes: int) -> None:
    x, y = make_blobs(200, centers=classes, n_features=6, random_state=0)
    latents, labels = torch.tensor(x).float(), torch.tensor(y)
    pair = nn.Identity(), nn.Identity()
    network = models.PrototypeNetwork(*pair, (6,), classes, classes, generator())
    before = network.prototypes.detach().clone()
    means = baselines.with_centres(network, latents, labels, "kmeans")
    r2 = float(models.objective(means, latents, labels).r2)
    assert r2 == pytest.approx(KMeans(classes, n_init=4).fit(x).inertia_ / 200, rel=1e-3)
    assert float((means(latents).argmax(1) == labels).float().mean()) == 1
    medoids = baselines.with_centres(network, latents, labels, "kmedoids")
    assert float(explanation.nearest(medoids.prototypes.detach(), latents)[0].max()) == 0
    assert torch.equal(network.prototypes, before)


# The estimator.


@parametrize_with_checks([PrototypeClassifier(epochs=60, random_state=0), baselines.GLVQ(4)])
def test_scikit_learn_s_checks(estimator: object, check: object) -> None:
    check(estimator)


def test_pictures_are_learned(fitted: PrototypeClassifier) -> None:
    images, labels = small_digits()
    assert fitted.network_.encode(torch.zeros(1, 1, 8, 8)).shape == (1, 40)
    before = PrototypeClassifier(epochs=1, batch_size=250, random_state=0).fit(images, labels)

    def loss(model: PrototypeClassifier) -> float:
        x, y = torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))
        return float(models.objective(model.network_, x, y).total())

    assert loss(fitted) < 0.75 * loss(before)
    again = clone(fitted).fit(images, labels)
    assert np.array_equal(again.predict_proba(images), fitted.predict_proba(images))
    assert fitted.prototypes_.shape == (15, 8, 8)
    assert fitted.prototypes_.min() >= 0 and fitted.prototypes_.max() <= 1


def test_bytes_and_fractions_are_the_same_pictures(fitted: PrototypeClassifier) -> None:
    raw = (small_digits()[0] * 255).round().astype(np.uint8)
    chances = fitted.predict_proba(raw)
    assert np.allclose(chances, fitted.predict_proba(raw / 255), atol=1e-5)
    assert np.allclose(chances.sum(1), 1)


def test_an_explanation_is_the_computation(fitted: PrototypeClassifier) -> None:
    images, _ = small_digits()
    table = fitted.explain(images[:7])
    assert len(table) == 7 * 15
    sums = table.groupby("sample")[[f"contribution[{k}]" for k in fitted.classes_]].sum()
    logits = np.log(fitted.predict_proba(images[:7]))
    centred = sums.to_numpy() - sums.to_numpy().mean(1, keepdims=True)
    assert np.allclose(centred, logits - logits.mean(1, keepdims=True), atol=1e-3)
    assert (table["predicted"].to_numpy()[::15] == fitted.predict(images[:7])).all()
    row = table.iloc[20]
    weight = fitted.network_.weight[int(row["prototype"]), 3].item()
    assert row["weight[3]"] == pytest.approx(weight)
    assert row["contribution[3]"] == pytest.approx(weight * row["distance"], rel=1e-5)
    names = [f"weight[{k}]" for k in fitted.classes_]
    assert row["prototype_class"] == fitted.classes_[row[names].astype(float).argmin()]
    assert (table.groupby("sample")["distance"].diff().dropna() >= 0).all()
    with torch.no_grad():
        latents = fitted.network_.encode(torch.from_numpy(images)[:, None])
        apart = torch.cdist(fitted.network_.prototypes, latents)
    assert fitted.nearest_training_.tolist() == apart.argmin(1).tolist()
    assert np.array_equal(fitted.nearest_examples_, images[fitted.nearest_training_])


def test_tables_are_learned_in_their_own_units(
    wine: tuple[pd.DataFrame, np.ndarray], fitted_table: PrototypeClassifier
) -> None:
    X, y = wine
    assert fitted_table.score(X, y) > 0.95
    decoded = fitted_table.prototypes_
    assert decoded.shape == (6, 13)
    assert (decoded >= X.min().to_numpy()).all() and (decoded <= X.max().to_numpy()).all()
    assert set(fitted_table.prototype_class_) <= {"red", "white", "rose"}
    # Beyond the range of training a row is no error.
    assert fitted_table.predict(X * 3).shape == (178,)


def test_a_saved_model_is_the_same_and_no_pickle(
    tmp_path: Path, fitted: PrototypeClassifier, fitted_table: PrototypeClassifier,
    wine: tuple[pd.DataFrame, np.ndarray],
) -> None:  # fmt: skip
    for model, X in ((fitted, small_digits()[0]), (fitted_table, wine[0])):
        path = tmp_path / f"{model.kind_}.safetensors"
        model.save(path)
        _, about = read_record(path, "prototype model")
        assert about["classes"] == model.classes_.tolist()
        again = PrototypeClassifier.load(path)
        assert np.array_equal(again.predict_proba(X), model.predict_proba(X))
        assert np.array_equal(again.prototypes_, model.prototypes_)
        pd.testing.assert_frame_equal(again.explain(X[:3]), model.explain(X[:3]))
        assert again.get_params() == model.get_params()
    assert list(again.feature_names_in_) == list(wine[0])
    odd = PrototypeClassifier(np.int64(3), epochs=1, random_state=np.random.RandomState(0))
    odd.fit(*wine).save(tmp_path / "odd.safetensors")
    assert PrototypeClassifier.load(tmp_path / "odd.safetensors").n_prototypes == 3
    (tmp_path / "other.safetensors").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"other.safetensors: not a .safetensors file"):
        PrototypeClassifier.load(tmp_path / "other.safetensors")


class Trunk(nn.Module):
    """A person's network: batch norm, two maps of 3 x 3."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_a_person_s_own_encoder_and_decoder(tmp_path: Path) -> None:
    images, labels = small_digits()
    trunk = Trunk()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    settings = {"epochs": 5, "batch_size": 40, "random_state": 0}
    model = PrototypeClassifier(12, encoder=trunk, **settings).fit(images, labels)
    assert all(torch.equal(before[name], value) for name, value in trunk.state_dict().items())
    assert not torch.equal(model.network_.encoder.layers[0].weight, trunk.layers[0].weight)
    assert model.network_.latent_shape == (2, 3, 3)
    assert model.prototypes_.shape == (12, 8, 8)
    model.save(tmp_path / "own.safetensors")
    with pytest.raises(DataError, match="its encoder was your own"):
        PrototypeClassifier.load(tmp_path / "own.safetensors")
    with pytest.raises(DataError, match="not those it was saved with"):
        PrototypeClassifier.load(tmp_path / "own.safetensors", nn.Linear(2, 2))
    again = PrototypeClassifier.load(tmp_path / "own.safetensors", Trunk())
    assert np.array_equal(again.predict_proba(images), model.predict_proba(images))
    up = nn.Sequential(nn.Flatten(), nn.Linear(18, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))
    both = PrototypeClassifier(encoder=trunk, decoder=up, **settings).fit(images, labels)
    assert both.network_.decoder[1].weight.shape == (64, 18)


def test_a_person_s_module_is_left_alone_by_tables(
    wine: tuple[pd.DataFrame, np.ndarray],
) -> None:
    """Tables are computed in double precision, on a copy."""
    encoder = nn.Sequential(nn.Linear(13, 5), nn.ReLU())
    model = PrototypeClassifier(6, encoder=encoder, epochs=2, random_state=0).fit(*wine)
    assert encoder[0].weight.dtype == torch.float32
    assert model.network_.encoder[0].weight.dtype == torch.float64
    assert model.prototypes_.shape == (6, 13)


def test_an_own_encoder_s_prototypes_start_at_examples() -> None:
    images, labels = small_digits()
    model = PrototypeClassifier(5, encoder=Trunk(), epochs=1, learning_rate=1e-9, batch_size=120)
    with pytest.warns(UserWarning, match="5 prototypes for 10 classes"):
        model.fit(images, labels)
    encoder = model.network_.encoder
    encoder.load_state_dict(model.encoder.state_dict())
    with torch.no_grad():
        latents = encoder.eval()(torch.from_numpy(images)[:, None]).flatten(1)
    apart = explanation.nearest(model.network_.prototypes.detach(), latents)[0]
    assert float(apart.max()) < 1e-4


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({}, {"X": lambda x: x * 16}, r"outside \[0, 1\].*'0 to 16'"),
        ({}, {"X": lambda x: np.where(x == x[3, 3, 3], np.nan, x)}, "NaN"),
        ({}, {"X": lambda x: x[:, :2, :2]}, "at least 3 x 3"),
        ({}, {"X": lambda x: x[..., None]}, "channels come last"),
        ({}, {"X": lambda x: x[:50]}, "50 pictures but 120 labels"),
        ({}, {"y": lambda y: y * 0}, "only one class; got 0"),
        ({"n_prototypes": 0}, {}, "too few prototypes; got 0"),
        ({"batch_size": 1}, {}, "batches too small.*got 1"),
        ({"epochs": 0}, {}, "must be positive"),
        ({"lambdas": (20, 1, 1)}, {}, "four weights"),
        ({"encoder": "cnn"}, {}, "unknown encoder; got 'cnn'"),
        ({"encoder": "conv"}, {"X": lambda x: x.reshape(120, -1)}, "needs pictures"),
        ({"encoder": nn.Linear(3, 3)}, {}, "the encoder fails on an input"),
        ({"decoder": nn.Linear(3, 3)}, {}, "the decoder fails on a latent"),
        ({"decoder": nn.Identity()}, {}, "does not give back the shape"),
    ],
)
def test_bad_input_is_said(settings: dict, change: dict, message: str) -> None:
    X, y = small_digits()
    X, y = change.get("X", lambda x: x)(X), change.get("y", lambda y: y)(y)
    with pytest.raises(ValueError, match=message):
        PrototypeClassifier(**{"epochs": 1, **settings}).fit(X, y)


def test_prediction_needs_the_size_that_was_learned(fitted: PrototypeClassifier) -> None:
    with pytest.raises(DataError, match=r"another size; got \(9, 8\); expected \(8, 8\)"):
        fitted.predict(np.zeros((2, 9, 8)))
    with pytest.raises(DataError, match="not pictures"):
        fitted.predict(np.zeros((2, 64)))


@pytest.mark.slow
def test_digits_are_learned_as_well_as_the_card_says() -> None:
    images, labels = small_digits(1797)
    model = PrototypeClassifier(epochs=150, batch_size=50, random_state=0)
    model.fit(images[:1400], labels[:1400])
    assert model.score(images[1400:], labels[1400:]) > 0.9


# The study.


def test_the_sets_of_a_seed_are_disjoint_and_the_same_for_every_method() -> None:
    sets = study.sets_of(study.Cell(), 3)
    assert [len(part) for part in sets] == [1078, 1078, 360, 360, 359, 359]
    other = study.sets_of(study.Cell(method="knn", lambda_1=0), 3)
    assert all(torch.equal(a, b) for a, b in zip(sets, other, strict=True))
    together = torch.cat([sets.train, sets.watch, sets.test]).flatten(1)
    everything = torch.from_numpy(digits()[0].reshape(-1, 64) / 16).float()
    ours, theirs = (
        sorted(map(tuple, (part * 16).round().int().tolist())) for part in (together, everything)
    )
    assert ours == theirs


def test_the_paper_s_sets_are_the_official_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation is the head of the training file, as the reader of the official code had it."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for name, count, start in (("train", 30, 0), ("t10k", 10, 100)):
        pixels = np.arange(start, start + count, dtype=np.uint8)
        images = np.broadcast_to(pixels[:, None, None], (count, 8, 8)).tobytes()
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(
            struct.pack(">IIII", 2051, count, 8, 8) + images
        )
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(
            struct.pack(">II", 2049, count) + bytes(k % 10 for k in range(count))
        )
    monkeypatch.setenv("PEIRA_DATA", str(tmp_path))
    monkeypatch.setattr(study, "IDX_WATCH", 5)
    cell = study.Cell(data="fashion-mnist")
    sets = study.sets_of(cell, 0)
    assert (sets.watch[:, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 3, 4]
    assert (sets.train[:, 0, 0, 0] * 255).round().tolist() == list(range(5, 30))
    assert (sets.test[:, 0, 0, 0] * 255).round().tolist() == list(range(100, 110))
    assert list(paper("prototypes").study().inputs(cell)) == ["fashion-mnist"]


def test_mnist_s_test_file_trains_the_published_network(real_data: Path) -> None:
    cell = study.Cell(data="mnist-test", pictures=500)
    sets = study.sets_of(cell, 0)
    assert sets.train.shape == (300, 1, 28, 28) and len(sets.test) == 100
    network = models.PrototypeNetwork(*models.conv_autoencoder((1, 28, 28)), (10, 2, 2))
    assert torch.isfinite(models.objective(network, sets.train[:50], sets.train_labels[:50])[0])


def table_of(**changes: float) -> pd.DataFrame:
    """Made-up measurements on which every claim holds, with changes to the main rows."""
    rows = []
    good = {
        "test_accuracy": 0.97, "worst_picture": 0.8, "knn_agrees": 0.95, "r1": 1.0, "r2": 2.0,
        "picture_distance": 1.0, "additive_error": 1e-6, "top_over_random": 0.3,
        "lead_over_random": 0.4, "classes_covered": 1.0, "deleted_random": 0.2,
    }  # fmt: skip
    for seed in range(4):
        for cell in study.small_cells():
            extra = 0.001 * seed
            values = {name: value + extra * value for name, value in good.items()}
            values["classes_covered"] = 1.0
            if cell.lambda_1 == 0 or cell.lambda_2 == 0:
                values |= {"r1": 5.0 + extra, "r2": 9.0 + extra, "picture_distance": 2.0 + extra}
            if cell == study.Cell():
                values |= changes
            rows.append({**cell.model_dump(), "seed": seed, **values})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changes", "refuted"),
    [
        ({}, set()),
        ({"test_accuracy": 0.94}, {"C1a", "C1b"}),
        ({"worst_picture": 1.2}, {"C2a"}),
        ({"knn_agrees": 0.5}, {"C2b"}),
        ({"r1": 4.0}, {"C3a", "C3b"}),
        ({"picture_distance": 3.0}, {"C3a", "C3b"}),
        ({"r2": 6.0}, {"C4"}),
        ({"additive_error": 1e-3}, {"C5a"}),
        ({"top_over_random": -0.1}, {"C5b"}),
        ({"lead_over_random": -0.1}, {"C5c"}),
        ({"classes_covered": 0.9}, {"C6"}),
    ],
)
def test_claims_are_judged_from_the_table(changes: dict[str, float], refuted: set[str]) -> None:
    verdicts = list(paper("prototypes").study().claims(table_of(**changes)))
    assert {one.claim for one in verdicts if one.verdict == "refuted"} == refuted
    assert sum(one.verdict == "supported" for one in verdicts) == len(verdicts) - len(refuted)


def test_the_figure_draws_without_pictures_too() -> None:
    empty = pd.DataFrame(columns=[*study.Cell.model_fields, "seed", "step", "name", "value"])
    drawn = figure.draw(table_of(), empty)
    assert len(drawn.subfigs) == 2


# Commands.


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, a table and a network of a person's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    images, labels = small_digits(200)
    np.savez("digits.npz", x=images, y=labels)
    np.savez("plain.npz", x=images)
    np.savez("raw.npz", x=images * 16, y=labels)
    X, y = load_wine(return_X_y=True, as_frame=True)
    X.assign(label=np.array(["red", "white", "rose"])[y]).to_csv("wine.csv", index=False)
    Path("net.py").write_text(
        "from torch import nn\n"
        "def trunk():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2))\n"
    )
    return tmp_path


def test_commands_on_pictures(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use.fit(Path("digits.npz"), Path("m.safetensors"), epochs=10, batch_size=40)
    assert "160, 40" in capsys.readouterr().out
    use.predict(Path("m.safetensors"), Path("plain.npz"), Path("out.csv"))
    said = pd.read_csv("out.csv")
    model = PrototypeClassifier.load("m.safetensors")
    images, _ = small_digits(200)
    assert said["predicted"].tolist() == model.predict(images[:, None]).tolist()
    assert said["row"].tolist() == list(range(1, 201))
    use.explain(Path("m.safetensors"), Path("plain.npz"), row=2, out=Path("why.csv"))
    why = pd.read_csv("why.csv")
    part = why[why["row"] == 2]
    predicted = part["predicted"].iloc[0]
    assert f"{part[f'contribution[{predicted}]'].sum():.4g}" in capsys.readouterr().out
    # The nearest training rows are those of the file, counted from 1.
    row = int(part.sort_values("prototype")["nearest_row"].iloc[4])
    assert np.allclose(model.nearest_examples_[4][0], images[row - 1])
    use.picture(Path("m.safetensors"), Path("all.png"))
    use.picture(Path("m.safetensors"), Path("one.png"), data=Path("plain.npz"), row=3)
    assert min(Path(name).stat().st_size for name in ("all.png", "one.png")) > 5000


def test_commands_on_a_table(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use.fit(Path("wine.csv"), Path("m.safetensors"), prototypes=6, epochs=100)
    use.predict(Path("m.safetensors"), Path("wine.csv"), Path("out.csv"))
    said, truth = pd.read_csv("out.csv"), pd.read_csv("wine.csv")["label"]
    assert (said["predicted"] == truth).mean() > 0.9
    use.explain(Path("m.safetensors"), Path("wine.csv"))
    assert "sum of 6" in capsys.readouterr().out
    use.picture(Path("m.safetensors"), Path("all.png"))
    assert Path("all.png").stat().st_size > 5000
    with pytest.raises(DataError, match="a model of a table"):
        use.picture(Path("m.safetensors"), Path("one.png"), data=Path("plain.npz"))


def test_commands_with_an_own_network(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use.fit(Path("digits.npz"), Path("m.safetensors"), epochs=2, encoder="net.py:trunk")
    use.predict(Path("m.safetensors"), Path("plain.npz"), Path("out.csv"), encoder="net.py:trunk")
    assert len(pd.read_csv("out.csv")) == 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"data": "raw.npz"}, r"raw.npz: pixels outside \[0, 1\].*0 to 16"),
        ({"data": "plain.npz"}, "plain.npz: pictures without labels"),
        ({"data": "absent.npz"}, "absent.npz: no such file"),
        ({"data": "wine.csv", "label": "kind"}, "wine.csv: no column 'kind'"),
        ({"data": "digits.npz", "test": 0.0}, "not a share"),
        ({"data": "digits.npz", "prototypes": 0}, "digits.npz: too few prototypes"),
        ({"data": "digits.npz", "encoder": "net.py:nose"}, "net.py: no function 'nose'"),
        ({"data": "digits.npz", "weights": Path("w")}, "w: weights without an encoder"),
    ],
)
def test_commands_say_what_is_wrong(own: Path, words: dict, message: str) -> None:
    data = Path(words.pop("data"))
    with pytest.raises(DataError, match=message):
        use.fit(data, Path("m.safetensors"), epochs=1, **words)
    assert not Path("m.safetensors").exists()


def test_a_gap_in_a_table_is_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use.fit(Path("wine.csv"), Path("m.safetensors"), epochs=2)
    table = pd.read_csv("wine.csv").astype(object)
    table.loc[4, "hue"] = ""
    table.to_csv("gap.csv", index=False)
    with pytest.raises(DataError, match=r"gap.csv, row 6, column 'hue': missing value"):
        use.predict(Path("m.safetensors"), Path("gap.csv"), Path("out.csv"))
    with pytest.raises(DataError, match=r"plain.npz: not a table"):
        use.explain(Path("m.safetensors"), Path("plain.npz"))


def test_sheets_have_a_place_for_every_prototype(fitted: PrototypeClassifier) -> None:
    sheet = display.prototype_sheet(fitted)
    assert sum(bool(axes.get_title()) for axes in sheet.axes) == 15
    one = display.explanation_sheet(fitted, small_digits()[0][0], top=4)
    assert len(one.axes) == 5
