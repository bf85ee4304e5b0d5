"""g-SAE against brute force, closed forms and networks whose answer is known."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peira.data import DataError
from peira.explain.g_sae import use
from peira.explain.g_sae.baselines import GatedSAE, JumpReLUSAE, PCADictionary, ReLUSAE
from peira.explain.g_sae.dictionary import GSAE, MODES, SparseCode, load_dictionary
from peira.explain.g_sae.faithfulness import (
    bootstrap_difference,
    divergence,
    faithfulness,
    steering_effects,
)
from peira.explain.g_sae.fitting import (
    SAERecipe,
    _remove_parallel,
    fit_end_to_end,
    geometric_median,
    start,
)
from peira.explain.g_sae.grammar import ACTING, RESTING, encode, sentence
from peira.explain.g_sae.pareto import pareto
from peira.explain.g_sae.planted import Planted
from peira.explain.g_sae.store import ActivationStore, cross_entropy_loss, probe, token_batches
from peira.explain.g_sae.study import gains, with_controls
from peira.nn import TinyGPT, replace_output

torch.set_num_threads(1)
QUICK = SAERecipe(steps=30, batch=64)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(mode: str = "product", h: int = 12, k: int = 3, d: int = 5, beta: float = 2.0) -> GSAE:
    """A dictionary with random parameters everywhere."""
    made = GSAE(h, k, beta, mode)  # type: ignore[arg-type]
    made.build(d, draws())
    with torch.no_grad():
        made.encoder += 0.3 * torch.randn(h, d, generator=draws(1))
        made.b_enc += 0.1 * torch.randn(h, generator=draws(2))
        made.b_pre += torch.randn(d, generator=draws(3))
        made.gradient_scale.fill_(1.7)
    return made


def rows(n: int = 40, d: int = 5, seed: int = 4) -> Tensor:
    return torch.randn(n, d, generator=draws(seed))


def gpt(seed: int = 0) -> TinyGPT:
    torch.manual_seed(seed)
    network = TinyGPT(vocabulary=11, context=8, width=12, layers=2, heads=2)
    for weight in network.parameters():
        # GPT-2's small initial weights leave nothing to lose.
        weight.data *= 8 if weight.dim() > 1 else 1
    return network


def texts(n: int = 24, seed: int = 0) -> Tensor:
    return torch.randint(11, (n, 9), generator=draws(seed))


class TestSelection:
    @pytest.mark.parametrize("mode", MODES)
    def test_selects_by_the_score_and_values_by_z(self, mode: str) -> None:
        made, x, g = built(mode).requires_grad_(False), rows(), rows(seed=5)
        code = made.encode(x, g)
        for row in range(len(x)):
            z = [
                max(0.0, float(made.encoder[j] @ (x[row] - made.b_pre) + made.b_enc[j]))
                for j in range(12)
            ]
            v = [abs(float(made.decoder[j] @ g[row])) / 1.7 for j in range(12)]
            score = {
                "topk": lambda j, z=z, v=v: z[j],
                "product": lambda j, z=z, v=v: z[j] * v[j],
                "additive": lambda j, z=z, v=v: z[j] + 2.0 * z[j] * v[j],
            }[mode]
            best = [j for j in sorted(range(12), key=score, reverse=True)[:3] if score(j) > 0]
            found = dict(zip(code.units[row].tolist(), code.values[row].tolist(), strict=True))
            assert {j for j in found if found[j] > 0} == set(best)
            for j in best:
                assert found[j] == pytest.approx(z[j], abs=1e-5)

    def test_without_a_gradient_every_mode_is_topk(self) -> None:
        x = rows()
        codes = [built(mode).encode(x).dense(12) for mode in MODES]
        assert torch.equal(codes[0], codes[1]) and torch.equal(codes[1], codes[2])

    def test_large_beta_selects_as_the_product_does(self) -> None:
        x, g = rows(), rows(seed=5)
        additive = built("additive", beta=1e6).encode(x, g).dense(12)
        assert torch.equal(additive, built("product").encode(x, g).dense(12))

    def test_with_and_without_autograd_the_same_code(self) -> None:
        made, x, g = built(), rows(), rows(seed=5)
        with torch.no_grad():
            plain = made.encode(x, g).dense(12)
        torch.testing.assert_close(made.encode(x, g).dense(12).detach(), plain)

    def test_nothing_is_differentiated_through_the_selection(self) -> None:
        made, x, g = built(), rows(1), rows(1, seed=5)
        code = made.encode(x, g)
        code.values.sum().backward()
        assert made.decoder.grad is None
        touched = made.encoder.grad.abs().sum(1).nonzero().squeeze(1).tolist()
        fired = code.units[0][code.values[0] > 0]
        assert set(touched) == set(fired.tolist())

    def test_z_times_v_is_the_change_of_a_linear_loss(self) -> None:
        made, x = built("topk"), rows(1)
        slope = rows(1, seed=6)
        code = made.encode(x)
        whole = made.decode(code) @ slope.T
        v = made.influence(slope)[0] * made.gradient_scale
        for place, unit in enumerate(code.units[0].tolist()):
            without = code.values.clone()
            without[0, place] = 0
            change = (whole - made.decode(SparseCode(without, code.units)) @ slope.T).abs()
            expected = code.values[0, place] * v[unit]
            assert float(change.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)

    def test_another_selection_shares_the_parameters(self) -> None:
        made = built("topk")
        other = made.selecting("product")
        assert other.decoder is made.decoder and made.mode == "topk" and other.uses_gradient


class TestDecoding:
    def test_sparse_is_dense(self) -> None:
        made, x = built(), rows()
        code = made.encode(x)
        dense = code.dense(12) @ made.decoder + made.b_pre
        torch.testing.assert_close(made.decode(code), dense)
        torch.testing.assert_close(made.decode(code.dense(12)), dense)

    def test_training_gradients_are_those_of_a_dense_implementation(self) -> None:
        made, x, g = built(), rows(), rows(seed=5)
        made.training_loss(x, g, SAERecipe()).backward()
        ours = {name: weight.grad.clone() for name, weight in made.named_parameters()}
        made.zero_grad()
        z = ((x - made.b_pre) @ made.encoder.T + made.b_enc).relu()
        v = (g @ made.decoder.T).abs()
        kept = torch.zeros_like(z).scatter(1, (z * v).topk(3).indices, 1.0)
        error = x - (z * kept) @ made.decoder - made.b_pre
        error.square().sum(1).mean().backward()
        for name, weight in made.named_parameters():
            torch.testing.assert_close(ours[name], weight.grad)

    def test_leading_dimensions_come_back(self) -> None:
        made, x = built(), rows(24).reshape(2, 3, 4, 5)
        assert made(x, x).shape == x.shape
        torch.testing.assert_close(
            made(x, x).reshape(-1, 5), made(x.reshape(-1, 5), x.reshape(-1, 5))
        )


class TestAuxiliary:
    def test_dead_units_rebuild_the_rest(self) -> None:
        made, x = built("topk", h=12, k=2, d=6), rows(3, 6)
        made.idle.fill_(500)
        recipe = SAERecipe(aux_weight=1.0)
        code = made.encode(x)
        error = (x - made.decode(code)).detach()
        # Those that fire here are alive again before the auxiliary loss is taken.
        fired = set(code.units[code.values > 0].tolist())
        dead = [unit for unit in range(12) if unit not in fired]
        z = ((x - made.b_pre) @ made.encoder[dead].T + made.b_enc[dead]).relu()
        kept = torch.zeros_like(z).scatter(1, z.topk(min(3, len(dead))).indices, 1.0)
        rest = (error - (z * kept) @ made.decoder[dead]).square().sum(1).mean()
        spread = (error - error.mean(0)).square().sum(1).mean()
        expected = (x - made.decode(code)).square().sum(1).mean() + rest / spread
        assert len(dead) > 3
        torch.testing.assert_close(made.training_loss(x, None, recipe), expected)

    def test_idle_counts_batches_without_firing(self) -> None:
        made = built("topk", h=12, k=1)
        x = rows(1)
        for _ in range(3):
            made.training_loss(x, None, SAERecipe())
        unit = int(made.encode(x).units)
        assert made.idle[unit] == 0
        assert set(made.idle.tolist()) == {0, 3}
        assert made.dead(SAERecipe(dead_after=3)) == 11


class TestFitting:
    def test_geometric_median(self) -> None:
        from scipy.optimize import minimize

        points = rows(50, 3).double()
        points[:5] += 100
        best = minimize(
            lambda c: np.linalg.norm(points.numpy() - c, axis=1).sum(), np.zeros(3), tol=1e-12
        )
        np.testing.assert_allclose(geometric_median(points, 1e-10, 1000), best.x, atol=1e-4)

    def test_gradient_along_a_direction_is_removed(self) -> None:
        weight = nn.Parameter(F.normalize(rows(), dim=1))
        weight.grad = rows(seed=9)
        across = weight.grad - (weight.grad * weight).sum(1, keepdim=True) * weight
        _remove_parallel(weight)
        torch.testing.assert_close(weight.grad, across.detach())
        assert (weight.grad * weight).sum(1).abs().max() < 1e-6

    def test_learns_and_keeps_directions_at_length_one(self) -> None:
        law = Planted.draw(draws(), d=12, features=16, classes=3, active=2)
        x, _ = law.sample(2000, draws(1))
        made = GSAE(48, 4, mode="topk").fit(x, recipe=SAERecipe(200, 128, 5e-3), generator=draws())
        torch.testing.assert_close(made.decoder.norm(dim=1), torch.ones(48))
        fresh = GSAE(48, 4, mode="topk")
        start(fresh, x, generator=draws())
        spread = (x - x.mean(0)).square().sum()

        def error(dictionary: GSAE) -> float:
            return float((x - dictionary(x).detach()).square().sum() / spread)

        assert 2 * error(made) < error(fresh)

    def test_same_draws_same_dictionary(self) -> None:
        x, g = rows(300), rows(300, seed=5)
        first, second = (GSAE(16, 2, mode="additive").fit(x, g, QUICK, draws(7)) for _ in range(2))
        assert torch.equal(first.decoder, second.decoder)

    @pytest.mark.parametrize("kind", [GSAE, ReLUSAE, GatedSAE, JumpReLUSAE])
    def test_the_unit_of_the_activations_does_not_matter(self, kind: type) -> None:
        x = rows(300) + 1
        options = {"mode": "topk"} if kind is GSAE else {}
        small, large = (
            kind(16, 2, **options).fit(factor * x, recipe=QUICK, generator=draws())
            for factor in (1.0, 1024.0)
        )
        torch.testing.assert_close(large(1024 * x) / 1024, small(x), atol=1e-4, rtol=1e-4)

    def test_starts_at_the_median_with_tied_weights(self) -> None:
        x = rows(200) + 5
        made = GSAE(16, 2, mode="topk")
        scale = start(made, x, generator=draws())
        torch.testing.assert_close(made.encoder, made.decoder)
        torch.testing.assert_close(made.b_pre.detach(), geometric_median(x))
        assert scale == pytest.approx(float((x - x.mean(0)).square().sum(1).mean().sqrt()))

    def test_gradient_scale_is_in_the_unit_of_the_loss(self) -> None:
        x, g = rows(300), 3e-4 * rows(300, seed=5)
        norm = float(g.square().sum(1).mean().sqrt())
        raw = GSAE(16, 2).fit(x, g, QUICK, draws())
        kept = GSAE(16, 2).fit(ActivationStore(x, g / norm, norm), recipe=QUICK, generator=draws())
        assert float(raw.gradient_scale) == pytest.approx(norm, rel=1e-5)
        assert float(kept.gradient_scale) == pytest.approx(norm, rel=1e-5)
        torch.testing.assert_close(kept(x, g), raw(x, g), atol=1e-4, rtol=1e-3)

    def test_memory_mapped_half_precision(self, tmp_path: Path) -> None:
        x = rows(300)
        np.save(tmp_path / "x.npy", x.half().numpy())
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        made = GSAE(16, 2, mode="topk").fit(mapped, recipe=QUICK, generator=draws())
        whole = GSAE(16, 2, mode="topk").fit(x.half(), recipe=QUICK, generator=draws())
        torch.testing.assert_close(made.decoder, whole.decoder)

    @pytest.mark.parametrize(
        ("x", "g", "message"),
        [
            (rows(9), None, "no gradients"),
            (rows(9), rows(8), r"\(9, 5\) and \(8, 5\)"),
            (rows(9), torch.zeros(9, 5), "all gradients are zero"),
            (rows(9).long(), rows(9), "int64"),
            (rows(9)[0], rows(9), "rows, features"),
            (torch.ones(9, 5), rows(9), "all activations are equal"),
        ],
    )
    def test_refuses(self, x: Tensor, g: Tensor | None, message: str) -> None:
        with pytest.raises(DataError, match=message):
            GSAE(16, 2).fit(x, g, QUICK)

    def test_names_row_and_column_of_what_is_not_finite(self) -> None:
        g = rows(9)
        g[6, 2] = math.nan
        with pytest.raises(DataError, match=r"gradients: not finite.*nan") as caught:
            GSAE(16, 2).fit(rows(9), g, QUICK)
        assert (caught.value.row, caught.value.column) == (7, 3)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"h": 4, "k": 5}, "1 to h = 4"),
            ({"h": 4, "k": 2, "beta": -1.0}, "beta is negative"),
            ({"h": 4, "k": 2, "mode": "sum"}, "unknown mode"),
            ({"h": 0, "k": 0}, "1 to h"),
        ],
    )
    def test_refuses_settings(self, options: dict, message: str) -> None:
        with pytest.raises(DataError, match=message):
            GSAE(**options)

    def test_refuses_a_batch_that_leaves_units_no_chance(self) -> None:
        with pytest.raises(DataError, match="3 batches of 4 rows fire 24 units at most"):
            GSAE(25, 2, mode="topk").fit(rows(), recipe=SAERecipe(1, 4, dead_after=3))

    def test_end_to_end_lowers_the_divergence_and_leaves_the_network(self) -> None:
        network, inputs = gpt(), texts()[:, :-1]
        store = ActivationStore.from_model(network, "blocks.0", token_batches(texts()))
        before = copy.deepcopy(network.state_dict())
        made, fresh = GSAE(48, 4, mode="topk"), GSAE(48, 4, mode="topk")
        start(fresh, store, generator=draws())
        fit_end_to_end(made, network, "blocks.0", inputs, store, SAERecipe(60, 64, 1e-2), draws())
        held = list(token_batches(texts(seed=3)))
        kl = [
            faithfulness(one, network, "blocks.0", held).patched["none"].kl for one in (made, fresh)
        ]
        assert kl[0] < 0.7 * kl[1]
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert all(weight.requires_grad and weight.grad is None for weight in network.parameters())


class TestBaselines:
    @pytest.mark.parametrize("kind", [ReLUSAE, GatedSAE, JumpReLUSAE])
    def test_as_many_units_fire_as_asked_for(self, kind: type) -> None:
        law = Planted.draw(draws(), d=12, features=16, classes=3, active=2)
        x, _ = law.sample(2000, draws(1))
        made = kind(32, 4).fit(x, recipe=SAERecipe(500, 128, 5e-3), generator=draws())
        assert float(made.firing(x).sum()) == pytest.approx(
            4, rel=0.03 if kind is JumpReLUSAE else 0.2
        )

    def test_gate_and_magnitude(self) -> None:
        made = GatedSAE(6, 2, d=4)
        with torch.no_grad():
            made.log_magnitude += torch.linspace(-1, 1, 6)
            made.b_magnitude += 0.2
            made.b_enc -= 0.1
        x = rows(20, 4)
        along = (x - made.b_pre) @ made.encoder.T
        magnitude = (along * made.log_magnitude.exp() + made.b_magnitude).relu()
        torch.testing.assert_close(made.encode(x), magnitude * (along + made.b_enc > 0))

    def test_jumprelu_keeps_what_exceeds_the_threshold(self) -> None:
        made = JumpReLUSAE(6, 2, d=4)
        x = rows(20, 4)
        z = ((x - made.b_pre) @ made.encoder.T).relu()
        torch.testing.assert_close(made.encode(x), z * (z > made.log_threshold.exp()))
        # The derivative of the mean number firing is minus the density at the threshold.
        dense = torch.linspace(0, 1, 20_001)[:, None]
        from peira.explain.g_sae.baselines import _Step

        threshold = torch.tensor([0.4], requires_grad=True)
        _Step.apply(dense, threshold).mean().backward()
        assert float(threshold.grad) == pytest.approx(-1, abs=1e-2)

    def test_principal_components(self) -> None:
        from sklearn.decomposition import PCA

        x = rows(200) @ rows(5, 5, seed=8) + 3
        made = PCADictionary(2).fit(x)
        pca = PCA(2).fit(x.numpy())
        expected = pca.inverse_transform(pca.transform(x.numpy()))
        np.testing.assert_allclose(made(x).detach(), expected, atol=1e-4)


class TestProbe:
    def test_gradients_are_those_of_the_summed_loss_of_each_token(self) -> None:
        network, tokens = gpt(), texts(2)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        seen = probe(network, "blocks.0", inputs, targets)
        step = 1e-2
        for example, time, feature in ((0, 2, 3), (1, 7, 0), (0, 0, 11)):
            sums = []
            for sign in (1, -1):
                push = torch.zeros_like(seen.activations)
                push[example, time, feature] = sign * step
                with torch.no_grad(), replace_output(network, "blocks.0", push.add):
                    sums.append(cross_entropy_loss(network(inputs), targets).double().sum())
            slope = float(sums[0] - sums[1]) / (2 * step)
            assert float(seen.gradients[example, time, feature]) == pytest.approx(slope, abs=2e-3)

    def test_a_larger_batch_does_not_change_them(self) -> None:
        network, tokens = gpt(), texts(3)
        one = probe(network, "blocks.0", tokens[:1, :-1], tokens[:1, 1:])
        three = probe(network, "blocks.0", tokens[:, :-1], tokens[:, 1:])
        torch.testing.assert_close(three.gradients[:1], one.gradients, atol=1e-5, rtol=1e-4)

    def test_the_network_is_left_as_it_was(self) -> None:
        network, tokens = gpt().train(), texts(2)
        probe(network, "blocks.0", tokens[:, :-1], tokens[:, 1:])
        assert network.training and all(weight.grad is None for weight in network.parameters())

    def test_refuses_a_mean(self) -> None:
        tokens = texts(2)
        with pytest.raises(DataError, match="one for each token"):
            probe(
                gpt(), "blocks.0", tokens[:, :-1], tokens[:, 1:],
                lambda outputs, targets: cross_entropy_loss(outputs, targets).mean(),
            )  # fmt: skip

    @pytest.mark.parametrize("how", ["detached", "frozen"])
    def test_refuses_a_loss_that_does_not_depend_on_the_site(self, how: str) -> None:
        class Cut(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.site, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

            def forward(self, x: Tensor) -> Tensor:
                if how == "detached":
                    return self.head(self.site(x).detach())
                with torch.no_grad():
                    return self.head(self.site(x))

        with pytest.raises(DataError, match="does not depend on the output of 'site'"):
            probe(Cut(), "site", rows(6, 4), torch.zeros(6, dtype=torch.long))

    def test_names_modules_and_tuples(self) -> None:
        tokens = texts(2)
        with pytest.raises(ValueError, match=r"no module 'block'.*blocks\.0"):
            probe(gpt(), "block", tokens[:, :-1], tokens[:, 1:])

        class Pair(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm = nn.LSTM(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.lstm(x)[0]

        with pytest.raises(ValueError, match="puts out a tuple"):
            probe(Pair(), "lstm", rows(6, 4), torch.zeros(6, dtype=torch.long))

    def test_refuses_whole_numbers_and_modules_that_run_twice(self) -> None:
        twice = nn.Linear(5, 5)
        network = nn.Sequential(twice, twice)
        with pytest.raises(DataError, match="runs 2 times"):
            probe(network, "0", rows(6), torch.zeros(6, dtype=torch.long))
        network = nn.Sequential(nn.Identity(), nn.Embedding(9, 5))
        with pytest.raises(DataError, match="int64"):
            probe(network, "0", torch.arange(6), torch.zeros(6, dtype=torch.long))


class TestStore:
    def test_rows_places_and_scale(self) -> None:
        network, tokens = gpt(), texts(5)
        store = ActivationStore.from_model(network, "blocks.1", token_batches(tokens, 2))
        seen = probe(network, "blocks.1", tokens[:, :-1], tokens[:, 1:])
        assert len(store) == 5 * 8
        torch.testing.assert_close(store.activations, seen.activations.flatten(0, 1))
        raw = store.gradients * store.gradient_scale
        torch.testing.assert_close(raw, seen.gradients.flatten(0, 1), atol=1e-5, rtol=1e-4)
        assert float(store.gradients.square().sum(1).mean()) == pytest.approx(1, rel=1e-5)
        assert store.places[8 + 3].tolist() == [1, 3]

    def test_padding_is_left_out(self) -> None:
        tokens = texts(3)
        targets = tokens[:, 1:].clone()
        targets[1, 5:] = -100
        store = ActivationStore.from_model(gpt(), "blocks.0", [(tokens[:, :-1], targets)])
        assert len(store) == 24 - 3
        assert [1, 5] not in store.places.tolist() and [1, 4] in store.places.tolist()

    def test_folder_of_half_precision(self, tmp_path: Path) -> None:
        network, tokens = gpt(), texts(5)
        whole = ActivationStore.from_model(network, "blocks.0", token_batches(tokens, 2))
        ActivationStore.from_model(
            network,
            "blocks.0",
            token_batches(tokens, 2),
            folder=tmp_path / "x",
            precision="float16",
        )
        mapped = ActivationStore.load(tmp_path / "x")
        assert isinstance(mapped.activations, np.memmap) and mapped.activations.dtype == np.float16
        assert mapped.gradient_scale == pytest.approx(whole.gradient_scale)
        np.testing.assert_allclose(mapped.activations, whole.activations, atol=2e-2, rtol=1e-3)
        np.testing.assert_allclose(mapped.gradients, whole.gradients, atol=1e-2, rtol=1e-3)
        assert {file.name for file in (tmp_path / "x").iterdir()} == {
            "activations.npy", "gradients.npy", "places.npy", "store.json",
        }  # fmt: skip

    def test_one_file(self, tmp_path: Path) -> None:
        whole = ActivationStore.from_model(gpt(), "blocks.0", token_batches(texts(5)))
        whole.save(tmp_path / "x.safetensors")
        again = ActivationStore.load(tmp_path / "x.safetensors")
        assert torch.equal(again.gradients, whole.gradients)
        assert again.gradient_scale == whole.gradient_scale

    def test_images_have_their_channels_as_features(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
        batch = [(torch.randn(6, 1, 5, 5), torch.arange(6) % 3)]
        store = ActivationStore.from_model(network, "0", batch)
        assert store.activations.shape == (6 * 9, 4)
        made = GSAE(16, 2).fit(store, recipe=QUICK, generator=draws())
        assert set(faithfulness(made, network, "0", batch).patched) == {
            "none", "gradient", "predicted", "shuffled",
        }  # fmt: skip

    def test_refuses_what_float16_cannot_hold(self, tmp_path: Path) -> None:
        network = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3))
        batch = [(1e6 * rows(), torch.zeros(40, dtype=torch.long))]
        with pytest.raises(DataError, match="beyond float16"):
            ActivationStore.from_model(network, "0", batch, folder=tmp_path, precision="float16")

    def test_shuffled_moves_gradients_alone(self) -> None:
        store = ActivationStore(rows(), rows(seed=5), 2.0)
        mixed = store.shuffled(draws())
        assert torch.equal(mixed.activations, store.activations)
        assert not torch.equal(mixed.gradients, store.gradients)
        torch.testing.assert_close(mixed.gradients.sort(0).values, store.gradients.sort(0).values)

    def test_refuses_other_files(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no activations"):
            ActivationStore.load(tmp_path)
        with pytest.raises(DataError, match="no such file"):
            ActivationStore.load(tmp_path / "none.safetensors")


def exact(d: int) -> GSAE:
    """A dictionary that rebuilds everything: both signs of every axis."""
    made = GSAE(2 * d, d, mode="product", d=d)
    with torch.no_grad():
        made.decoder.copy_(torch.cat([torch.eye(d), -torch.eye(d)]))
        made.encoder.copy_(made.decoder)
    return made


class TestFaithfulness:
    def test_an_exact_dictionary_loses_nothing(self) -> None:
        network, held = gpt(), list(token_batches(texts(), 10))
        found = faithfulness(exact(12), network, "blocks.0", held)
        assert found.delta("none") == pytest.approx(0, abs=1e-5)
        assert found.recovered("none") == pytest.approx(1, abs=1e-4)
        assert found.patched["none"].kl == pytest.approx(0, abs=1e-5)
        assert found.patched["none"].nmse < 1e-10
        assert found.intact.shape == (24, 8)

    def test_the_mean_recovers_nothing(self) -> None:
        network, held = gpt(), list(token_batches(texts()))
        store = ActivationStore.from_model(network, "blocks.0", held)
        made = PCADictionary(2).fit(store)
        with torch.no_grad():
            made.decoder.zero_()
        found = faithfulness(made, network, "blocks.0", held)
        assert found.recovered("none") == pytest.approx(0, abs=1e-5)
        assert found.patched["none"].nmse == pytest.approx(1, abs=1e-5)

    def test_against_the_head_by_hand(self) -> None:
        law = Planted.draw(draws(), d=12, features=16, classes=3, active=2)
        x, y = law.sample(500, draws(1))
        network = law.network()
        store = ActivationStore.from_model(network, "site", [(x, y)])
        made = GSAE(32, 2, mode="product").fit(store, recipe=QUICK, generator=draws())
        found = faithfulness(made, network, "site", [(x[:300], y[:300]), (x[300:], y[300:])])
        with torch.no_grad():
            intact = x @ law.head.T
            p = intact.softmax(1) - F.one_hot(y, 3)
            patched = made(x, p @ law.head) @ law.head.T
            own = made(x, (intact.softmax(1) - F.one_hot(intact.argmax(1), 3)) @ law.head)
            ablated = (x.mean(0) @ law.head.T).expand_as(intact)
            kl = divergence(intact, patched).mean()
        for got, logits in (
            (found.patched["gradient"].losses, patched), (found.intact, intact),
            (found.ablated, ablated), (found.patched["predicted"].losses, own @ law.head.T),
        ):  # fmt: skip
            expected = F.cross_entropy(logits, y, reduction="none")
            torch.testing.assert_close(got[:, 0], expected, atol=1e-4, rtol=1e-4)
        assert found.patched["gradient"].kl == pytest.approx(float(kl), rel=1e-4)
        assert found.patched["gradient"].firing <= 2

    def test_padding_does_not_count(self) -> None:
        network, tokens = gpt(), texts(6)
        inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
        store = ActivationStore.from_model(network, "blocks.0", [(inputs, targets)])
        made = GSAE(24, 2).fit(store, recipe=QUICK, generator=draws())
        # The last places attend to the others, and nothing attends to them.
        whole = faithfulness(made, network, "blocks.0", [(inputs[:, :5], targets[:, :5])])
        targets[:, 5:] = -100
        padded = faithfulness(made, network, "blocks.0", [(inputs, targets)])
        assert padded.tokens == 30
        for name in ("loss", "delta", "recovered", "kl", "nmse", "firing"):
            ours, theirs = padded.table()[name][:2], whole.table()[name][:2]
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)

    def test_divergence_of_two_coins(self) -> None:
        p, q = torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5])
        expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
        assert float(divergence(p.log(), q.log() + 3)) == pytest.approx(expected, abs=1e-6)

    def test_refuses_another_width(self) -> None:
        with pytest.raises(DataError, match="another width"):
            faithfulness(exact(5), gpt(), "blocks.0", token_batches(texts()))
        with pytest.raises(DataError, match="not fitted"):
            faithfulness(GSAE(4, 2), gpt(), "blocks.0", token_batches(texts()))

    def test_bootstrap(self) -> None:
        a, b = rows(30, 4), rows(30, 4, seed=8)
        assert bootstrap_difference(a, a) == (0, 0, 0)
        mean, low, high = bootstrap_difference(a, b)
        differences = (a - b).mean(1).double()
        assert mean == pytest.approx(float(differences.mean()))
        half = 1.96 * float(differences.std(correction=0)) / 30**0.5
        assert high - low == pytest.approx(2 * half, rel=0.1)

    def test_curve_over_k(self) -> None:
        network = gpt()
        store = ActivationStore.from_model(network, "blocks.0", token_batches(texts(60)))
        held = list(token_batches(texts(seed=5)))
        table = pareto(
            store, network, "blocks.0", held, 48, (1, 12), recipe=SAERecipe(100, 64, 3e-3)
        )
        plain = table[(table["mode"] == "topk")].set_index("k")
        assert plain.loc[12, "delta"] < plain.loc[1, "delta"]
        assert list(table.groupby("mode").size()) == [8, 2]


class TestSteering:
    def test_a_linear_network_in_closed_form(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3))
        directions = rows(7)
        found = steering_effects(network, "0", rows(11), directions, 2.0, at_once=3)
        unit = F.normalize(directions, dim=1)
        moved = 2.0 * unit @ network[1].weight.T
        torch.testing.assert_close(found.l2, moved.norm(dim=1).detach(), atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            intact = network(rows(11))
            kl = divergence(intact, intact + moved[4]).mean()
        assert float(found.kl[4]) == pytest.approx(float(kl), rel=1e-4)

    def test_length_of_a_direction_does_not_matter(self) -> None:
        inputs, directions = texts()[:, :-1], rows(3, 12)
        first = steering_effects(gpt(), "blocks.0", inputs, directions, 1.0)
        second = steering_effects(gpt(), "blocks.0", inputs, 9 * directions, 1.0)
        torch.testing.assert_close(first.kl, second.kl)

    def test_last_token_alone_or_all(self) -> None:
        network, inputs = gpt(), texts()[:, :-1]
        made = exact(12)
        with torch.no_grad():
            intact = network(inputs)
            with made.steer(network, "blocks.0", 3, 2.0, "last"):
                last = network(inputs)
            with made.steer(network, "blocks.0", 3, 2.0):
                everywhere = network(inputs)
        assert torch.equal(last[:, :-1], intact[:, :-1])
        assert (last[:, -1] - intact[:, -1]).abs().max() > 1e-3
        assert (everywhere[:, 0] - intact[:, 0]).abs().max() > 1e-3
        again = steering_effects(network, "blocks.0", inputs, made.decoder[3:4], 2.0)
        expected = divergence(intact[:, -1], last[:, -1]).mean()
        assert float(again.kl[0]) == pytest.approx(float(expected), rel=1e-3)

    def test_refuses_a_unit_that_is_not_there(self) -> None:
        with pytest.raises(DataError, match="0 to 23"):
            exact(12).steer(gpt(), "blocks.0", 24, 1.0)


class TestLooking:
    def test_top_examples_and_firing(self) -> None:
        made, x = built("topk"), rows(500)
        dense = made.encode(x).dense(12).detach()
        found = made.top_examples(2, x, count=4)
        values, places = dense[:, 2].topk(4)
        assert [row for row, _ in found] == places.tolist()
        assert [value for _, value in found] == pytest.approx(values.tolist(), abs=1e-5)
        torch.testing.assert_close(made.firing(x).float(), (dense > 0).float().mean(0))

    @pytest.mark.parametrize("kind", [GSAE, ReLUSAE, GatedSAE, JumpReLUSAE, PCADictionary])
    def test_round_trip(self, kind: type, tmp_path: Path) -> None:
        x, g = rows(200), rows(200, seed=5)
        made = (kind(4) if kind is PCADictionary else kind(16, 3)).fit(x, g, QUICK, draws())
        made.save(tmp_path / "d.safetensors")
        again = load_dictionary(tmp_path / "d.safetensors")
        assert type(again) is kind and again.about() == made.about()
        hint = g if made.uses_gradient else None
        assert torch.equal(again(x, hint), made(x, hint))

    def test_refuses_other_files(self, tmp_path: Path) -> None:
        ActivationStore(rows()).save(tmp_path / "x.safetensors")
        with pytest.raises(DataError, match="not a dictionary"):
            load_dictionary(tmp_path / "x.safetensors")

    def test_topk_of_dictionary_learning(self) -> None:
        peer = pytest.importorskip("dictionary_learning.trainers.top_k")
        made, x = built("topk"), rows()
        theirs = peer.AutoEncoderTopK(5, 12, 3)
        with torch.no_grad():
            theirs.encoder.weight.copy_(made.encoder)
            theirs.encoder.bias.copy_(made.b_enc)
            theirs.decoder.weight.copy_(made.decoder.T)
            theirs.b_dec.copy_(made.b_pre)
        torch.testing.assert_close(made.encode(x).dense(12), theirs.encode(x))
        torch.testing.assert_close(made(x), theirs(x))


class TestPlanted:
    def test_big_features_have_no_effect_and_small_ones_all(self) -> None:
        law = Planted.draw(draws())
        effects = law.directions @ law.head.T
        assert effects[:32].abs().max() < 1e-3
        assert effects[32:].norm(dim=1).min() > 1
        torch.testing.assert_close(law.directions.norm(dim=1), torch.ones(64))

    def test_rows_have_their_features(self) -> None:
        law = Planted.draw(draws(), d=40, features=20, classes=3, active=3)
        x, _ = law.sample(200, draws(1))
        # Twenty directions in forty dimensions: the amplitudes can be solved for.
        amplitudes = torch.linalg.lstsq(law.directions.T, x.T).solution.T
        assert ((amplitudes[:, :10] - 1).abs() < 1e-3).sum(1).tolist() == [3] * 200
        assert ((amplitudes[:, 10:] - 0.35).abs() < 1e-3).sum(1).tolist() == [3] * 200

    def test_labels_follow_the_head(self) -> None:
        law = Planted.draw(draws(), sharpness=2.0)
        x, y = law.sample(20_000, draws(1))
        odds = (x @ law.head.T).softmax(1)
        spread = (odds * (1 - odds)).mean(0).div(len(x)).sqrt()
        share = F.one_hot(y, 8).float().mean(0)
        assert ((share - odds.mean(0)).abs() < 4 * spread).all()
        assert float((x @ law.head.T).var(0).mean().sqrt()) == pytest.approx(2.0, rel=0.15)

    def test_recovered(self) -> None:
        law = Planted.draw(draws())
        units = torch.cat([law.directions[:5], 2 * law.directions[40:43], rows(9, 32)])
        assert law.recovered(units) == (5, 3)


class TestGrammar:
    @pytest.mark.parametrize("plural", [True, False])
    def test_the_last_verb_agrees_with_the_first_noun(self, plural: bool) -> None:
        draw = random.Random(0)
        for _ in range(200):
            words = sentence(draw, plural).rstrip(".").split()
            verbs = [w for w in words if w.rstrip("s") in (*RESTING, *ACTING)]
            assert words[0] in (("the", "some", "these") if plural else ("the", "a", "this"))
            assert all(verb.endswith("s") != plural for verb in verbs)
            encode(" ".join(words))


class TestStudy:
    def test_gains_need_every_seed(self) -> None:
        table = pd.DataFrame(
            {
                "host": "text", "method": "additive", "k": [4, 4, 8, 8], "seed": [0, 1, 0, 1],
                "gain_low": [0.1, 0.2, 0.1, -0.1],
            }
        )  # fmt: skip
        assert gains(table, "additive") == {"k = 4": True, "k = 8": False}

    def test_controls(self) -> None:
        table = pd.DataFrame(
            {
                "method": ["product", "shuffled"], "seed": 0, "loss": [1.0, 2.0],
                "loss_intact": 0.5, "delta_topk_hinted": [1.5, np.nan],
                "delta_gradient": [0.5, 1.7], "delta_shuffled": [2.5, 1.6],
            }
        )  # fmt: skip
        made = with_controls(table).set_index("method")["loss"]
        assert made["trained without"] == 2.0
        assert made["trained with shuffled"] == 2.2
        assert made["selected with shuffled"] == 3.0


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A person's model and inputs."""
    (tmp_path / "model.py").write_text(
        "import torch\nfrom peira.nn import TinyGPT\n\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return TinyGPT(vocabulary=11, context=8, width=12, layers=2, heads=2)\n"
    )
    np.savez(tmp_path / "texts.npz", inputs=texts(40).numpy())
    (tmp_path / "words.txt").write_text("\n".join("abcdefghijk"))
    return tmp_path


class TestUse:
    def test_from_a_model_to_its_units(self, own: Path, capsys: pytest.CaptureFixture) -> None:
        model, inputs = f"{own / 'model.py'}:build", own / "texts.npz"
        kept, made = own / "x.safetensors", own / "d.safetensors"
        use.capture(model, inputs, kept, "blocks.0")
        assert "320 rows of 12 features" in capsys.readouterr().out
        use.fit(kept, made, units=24, k=3, steps=20, batch=64)
        assert "gradient of another token" in capsys.readouterr().out
        use.report(made, kept)
        use.faithfulness(model, made, inputs, "blocks.0")
        assert "prediction" in capsys.readouterr().out
        use.steer(model, made, inputs, "blocks.0", unit=2)
        assert "random directions" in " ".join(capsys.readouterr().out.split())
        sae = load_dictionary(made)
        store = ActivationStore.load(kept)
        unit = int(sae.firing(store).argmax())
        row, _ = sae.top_examples(unit, store, count=1)[0]
        use.examples(made, kept, unit, inputs=inputs, vocabulary=own / "words.txt", count=1)
        example, position = store.places[row].tolist()
        shown = "".join("abcdefghijk"[t] for t in texts(40)[example, : position + 1].tolist())
        assert shown in capsys.readouterr().out

    def test_curve(self, own: Path) -> None:
        use.curve(
            f"{own / 'model.py'}:build", own / "texts.npz", "blocks.0", units=24, ks="2,4",
            steps=10, batch=32, out=own / "curve.csv",
        )  # fmt: skip
        table = pd.read_csv(own / "curve.csv")
        assert set(table["k"]) == {2, 4} and set(table["mode"]) == {"topk", "additive"}

    def test_arrays_of_ones_own(self, own: Path) -> None:
        np.save(own / "x.npy", rows(200).numpy())
        np.save(own / "g.npy", rows(200, seed=5).numpy())
        use.fit(
            own / "x.npy", own / "d.safetensors", own / "g.npy", units=16, k=2, steps=5, batch=32
        )
        assert load_dictionary(own / "d.safetensors").d == 5
        np.save(own / "g.npy", rows(199, seed=5).numpy())
        with pytest.raises(DataError, match=r"g\.npy.*\(200, 5\) and \(199, 5\)"):
            use.fit(own / "x.npy", own / "d.safetensors", own / "g.npy", units=16, k=2)
        with pytest.raises(DataError, match="no gradients"):
            use.fit(own / "x.npy", own / "d.safetensors", units=16, k=2)

    def test_bad_input(self, own: Path) -> None:
        model, inputs = f"{own / 'model.py'}:build", own / "texts.npz"
        with pytest.raises(DataError, match=r"no module 'layer\.0'"):
            use.capture(model, inputs, own / "x.safetensors", "layer.0")
        np.savez(own / "floats.npz", inputs=rows(4).numpy())
        with pytest.raises(DataError, match=r"floats.npz.*no array 'targets'"):
            use.capture(model, own / "floats.npz", own / "x.safetensors", "blocks.0")
        np.savez(own / "large.npz", inputs=texts(4).numpy() + 5)
        with pytest.raises(DataError, match="fails on these inputs: IndexError"):
            use.capture(model, own / "large.npz", own / "x.safetensors", "blocks.0")
        np.savez(own / "odd.npz", inputs=texts(4).numpy(), targets=texts(3).numpy())
        with pytest.raises(DataError, match="4 and 3"):
            use.capture(model, own / "odd.npz", own / "x.safetensors", "blocks.0")
        with pytest.raises(DataError, match="between 0 and 1"):
            use.curve(model, inputs, "blocks.0", train_fraction=1.0)
        with pytest.raises(DataError, match="whole number"):
            use.curve(model, inputs, "blocks.0", ks="2,x")
