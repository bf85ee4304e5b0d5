"""Local training: against hand-made references, closed forms, published tables, brute force."""

import copy
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.linear_model import Ridge
from torch import nn

from peira.cli.using import run_command
from peira.data import DataError, digit_pictures, digits
from peira.nn import accuracy, cifar_resnet, mlp, small_cnn
from peira.nn.saved_tensors import SavedTensors
from peira.training import (
    LocalTrainer,
    checkpointed_backward,
    imagenet_resnet,
    local_weights,
    published_partition,
    released_weights,
    supervised_contrastive,
)
from peira.training.man.auxiliary import Decoder, make_head
from peira.training.man.memory import end_to_end_backward
from peira.training.man.method import set_rate, sgd
from peira.training.man.partition import BLOCKS, PUBLISHED, balanced_partition, even_partition
from peira.training.man.problems import (
    PREPARED,
    Preparation,
    _ridge_accuracy,
    augmented,
    normalised,
    probe_accuracies,
)
from peira.training.man.study import (
    Cell,
    Study,
    gap_closed,
    gap_slopes,
    imagenet_saves,
    memory_falls,
    network_of,
    trainer_of,
)

IMAGE = (3, 8, 8)
MIB = 2**20


def network(blocks=(2, 2), widths=(4, 8), classes=5, seed=0):
    torch.manual_seed(seed)
    return cifar_resnet(blocks=blocks, widths=widths, classes=classes)


def trainer(partition=4, seed=0, **settings):
    net = network(seed=seed)
    return LocalTrainer(net, partition, image=IMAGE, **settings).train()


def batch(size=6, classes=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, *IMAGE, generator=generator)
    return images, torch.randint(classes, (size,), generator=generator)


def cross_entropy(labels):
    return lambda logits: F.cross_entropy(logits, labels)


def gradients(module):
    return {
        name: weight.grad.clone()
        for name, weight in module.named_parameters()
        if weight.grad is not None
    }


def close(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


class TestPartition:
    @pytest.mark.parametrize(
        ("name", "modules", "ends"),
        [
            ("resnet32", 2, [7, 15]),
            ("resnet32", 4, [3, 7, 11, 15]),
            ("resnet32", 8, [1, 3, 5, 7, 9, 11, 13, 15]),
            ("resnet32", 16, list(range(1, 16))),
            ("resnet110", 4, [12, 26, 40, 54]),
            ("resnet110", 8, [5, 12, 19, 26, 33, 40, 47, 54]),
            ("resnet110", 16, [2, 5, 8, 11, 14, 17, 20, 23, 26, 30, 34, 38, 42, 46, 50, 54]),
            ("resnet152", 2, [9, 50]),
            ("resnet101", 1, [33]),
        ],
    )
    def test_published_tables(self, name, modules, ends):
        assert published_partition(name, modules) == ends

    def test_every_published_table_has_its_modules(self):
        for name, table in PUBLISHED.items():
            for modules in table:
                ends = published_partition(name, modules)
                # Where every block is a module, the published K counts the stem as one more.
                every = ends == list(range(1, sum(BLOCKS[name]) + 1))
                assert len(ends) == modules - every
                assert ends == sorted(set(ends))

    def test_even_partition_is_the_published_one_where_that_is_even(self):
        for modules in (2, 3, 4, 8):
            assert even_partition(15, modules) == published_partition("resnet32", modules)
        assert even_partition(54, 2) == published_partition("resnet110", 2)
        assert even_partition(54, 4) == [13, 26, 40, 54] != published_partition("resnet110", 4)

    @pytest.mark.parametrize("modules", [0, 5])
    def test_impossible_number_of_modules(self, modules):
        with pytest.raises(DataError, match="1 to 4, the units between"):
            trainer(modules)

    @pytest.mark.parametrize("ends", [[2, 2, 4], [3, 2, 4], [2, 3], [0, 4], []])
    def test_lists_that_are_no_partition(self, ends):
        with pytest.raises(DataError, match="not a partition"):
            trainer(ends)

    def test_unknown_tables(self):
        with pytest.raises(DataError, match="K of 1, 2, 3, 4, 8, 16"):
            published_partition("resnet32", 5)
        with pytest.raises(DataError, match="resnet110"):
            published_partition("vgg", 2)

    def test_balanced_partition_is_the_best_of_all(self):
        rng, units = np.random.default_rng(0), 7
        for _ in range(30):
            live = np.cumsum(rng.integers(1, 50, units + 1)).tolist()
            inputs, extra = rng.integers(1, 9, (2, units + 1)).tolist()
            for modules in (1, 2, 3, 5):

                def peak(ends, live=live, inputs=inputs, extra=extra):
                    starts = [0, *ends[:-1]]
                    return max(
                        live[end]
                        - (live[start] - inputs[start] if start else 0)
                        + (extra[end] if end < units else 0)
                        for start, end in zip(starts, ends, strict=True)
                    )

                found = balanced_partition(live, inputs, extra, modules)
                every = itertools.combinations(range(1, units), modules - 1)
                assert peak(found) == min(peak([*ends, units]) for ends in every)
                assert len(found) == modules

    @pytest.mark.parametrize("local_loss", ["ce", "infopro"])
    def test_measured_balance_is_the_best_of_all(self, local_loss):
        images = torch.rand(2, *IMAGE)
        # One pair of weights, so that every module has the same parts wherever it ends.
        settings = {"local_loss": local_loss, "weights": (1.0, 1.0)}
        peaks = {
            ends: trainer([*ends, 4], **settings).memory_report(images).peak
            for ends in itertools.combinations(range(1, 4), 2)
        }
        balanced = trainer("balanced", modules=3, **settings)
        assert peaks[tuple(balanced.ends[:-1])] == min(peaks.values())


class TestWeights:
    def test_line_over_modules(self):
        found = np.array(local_weights(5, (4.0, 1.0), (0.0, 0.6)))
        assert found == pytest.approx(np.array([(4, 0), (3, 0.2), (2, 0.4), (1, 0.6)]))
        assert local_weights(2) == [(5.0, 0.0)]

    def test_released_ratio_is_the_stage(self):
        # Next units of the three modules are in stages 1, 2, 3; K - 2 = 2.
        assert released_weights("resnet32", 4) == [(2.5, 0.25), (0.0, 0.0), (-2.5, -0.25)]
        sixteen = released_weights("resnet32", 16)
        assert len(sixteen) == 14
        assert sixteen[0] == pytest.approx((5 * 13 / 14, 0.5 * 13 / 14))
        assert sixteen[4] == pytest.approx((5 * 12 / 14, 0.5 * 12 / 14))
        assert sixteen[-1] == pytest.approx((5 * 11 / 14, 0.5 * 11 / 14))
        assert released_weights("resnet152", 2, task=(0.75, 0.75)) == [(5.0, 0.75)]

    def test_infopro_weights_by_default(self):
        assert trainer(2, local_loss="infopro").weights == [(5.0, 0.5)]
        assert trainer(4, local_loss="infopro").weights == [(5.0, 0.0), (2.5, 0.5), (0.0, 1.0)]
        heads = trainer(4, local_loss="infopro").auxiliaries
        assert [part.head is None for part in heads] == [True, False, False]
        assert [part.decoder is None for part in heads] == [False, False, True]

    def test_module_without_a_loss_keeps_its_weights(self):
        local = trainer([1, 4], local_loss="infopro", weights=(0.0, 0.0))
        images, labels = batch()
        local.backward(images, cross_entropy(labels))
        assert not gradients(local.local_modules[0])
        assert gradients(local.local_modules[1])


class TestHeads:
    @pytest.mark.parametrize(
        ("config", "channels", "parameters"),
        [
            ("0c1f", 16, 16 * 10 + 10),
            ("0c2f", 16, 16 * 128 + 128 + 1290),
            ("1c1f", 16, 16 * 32 * 9 + 64 + 330),
            ("1c2f", 16, 16 * 32 * 9 + 64 + 32 * 128 + 128 + 1290),
            ("1c2f", 32, 32 * 64 * 9 + 128 + 64 * 128 + 128 + 1290),
            ("1c2f", 64, 64 * 64 * 9 + 128 + 64 * 128 + 128 + 1290),
            ("1c3f", 16, 16 * 32 * 9 + 64 + 32 * 128 + 128 + 128 * 128 + 128 + 1290),
            ("2c2f", 16, 16 * 32 * 9 + 32 * 32 * 9 + 128 + 32 * 128 + 128 + 1290),
        ],
    )
    def test_parameters_of_the_released_heads(self, config, channels, parameters):
        head = make_head(config, (channels, 8, 8), widest=64, outputs=10)
        assert sum(weight.numel() for weight in head.parameters()) == parameters
        strides = [m.stride for m in head if isinstance(m, nn.Conv2d)]
        assert strides[:1] == ([(1, 1)] if channels == 64 else [(2, 2)])[: len(strides)]
        assert all(stride == (1, 1) for stride in strides[1:])
        assert head(torch.rand(2, channels, 8, 8)).shape == (2, 10)

    def test_decoder(self):
        decoder = Decoder((32, 4, 4), (3, 16, 16))
        count = 32 * 12 * 9 + 12 + 24 + 12 * 3 * 9 + 3
        assert sum(weight.numel() for weight in decoder.parameters()) == count
        picture = decoder(torch.rand(2, 32, 4, 4))
        assert picture.shape == (2, 3, 16, 16)
        assert 0 < picture.min() < picture.max() < 1

    @pytest.mark.parametrize(
        ("shape", "widths"),
        [((512, 28, 28), [128, 32, 12, 3]), ((1024, 14, 14), [192, 64, 32, 12, 3])],
    )
    def test_imagenet_parts(self, shape, widths):
        with torch.device("meta"):
            decoder = Decoder(shape, (3, 224, 224), pyramid=True)
            head = make_head("imagenet", shape, 2048, 1000)
            features = torch.rand(2, *shape)
            sides = []
            x = features
            for layer in decoder.layers:
                x = layer(x)
                sides.append(x.shape[-1])
            assert x.shape == (2, 3, 224, 224)
            assert head(features).shape == (2, 1000)
        convolutions = [m for m in decoder.layers if isinstance(m, nn.Conv2d)]
        assert [m.out_channels for m in convolutions] == widths
        assert sorted(set(sides)) == [shape[-1] << step for step in range(len(widths))]
        inner = [m.out_channels for m in head if isinstance(m, nn.Conv2d)]
        assert inner == [shape[0] // 4, 256, 512, 2048]

    def test_heads_fit_the_next_unit_where_it_doubles_channels_and_halves_the_picture(self):
        local = trainer([2, 4], local_loss="infopro")
        x = torch.rand(2, 4, 8, 8)
        part = local.auxiliaries[0]
        assert part.path(x).shape == (2, 8, 4, 4)
        assert part.head[0].in_channels == 8
        assert part.decoder.layers[1].in_channels == 8
        plain = trainer([2, 4], momentum=None, bias=None)
        assert plain.auxiliaries[0].path(x) is x
        assert plain.auxiliaries[0].head[0].in_channels == 4

    def test_contrastive_loss_by_hand(self):
        torch.manual_seed(0)
        features, labels = torch.randn(7, 5), torch.tensor([0, 1, 0, 2, 1, 0, 3])
        unit = features / features.norm(dim=1, keepdim=True)
        total = 0.0
        for i in range(7):
            mates = [j for j in range(7) if j != i and labels[j] == labels[i]]
            below = sum(math.exp(float(unit[i] @ unit[k]) / 0.07) for k in range(7) if k != i)
            for j in mates:
                total -= (float(unit[i] @ unit[j]) / 0.07 - math.log(below)) / len(mates)
        assert float(supervised_contrastive(features, labels)) == pytest.approx(total / 7, rel=1e-5)
        features.requires_grad_()
        supervised_contrastive(features, labels).backward()
        assert features.grad.isfinite().all()

    def test_refusals(self):
        with pytest.raises(DataError, match="unknown auxiliary head"):
            trainer(aux="3c9f")
        with pytest.raises(DataError, match="no decoder from these features"):
            Decoder((8, 5, 5), (3, 224, 224), pyramid=True)


class TestGradients:
    def test_no_gradient_crosses_a_boundary(self):
        local = trainer(4)
        images, labels = batch()
        steps = local._steps(images, cross_entropy(labels), None, None)
        owners = [
            [*module.parameters(), *(local.auxiliaries[number : number + 1]).parameters()]
            for number, module in enumerate(local.local_modules)
        ]
        before = {}
        for number, _ in enumerate(steps):
            for other, weights in enumerate(owners):
                trained = [w for w in weights if w.requires_grad]
                if other <= number:
                    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in trained)
                else:
                    assert all(w.grad is None for w in trained)
                # What is done stays done: later modules add nothing to earlier gradients.
                if other < number:
                    for place, w in enumerate(trained):
                        assert torch.equal(w.grad, before[other, place])
            before |= {
                (number, place): w.grad.clone()
                for place, w in enumerate(w for w in owners[number] if w.requires_grad)
            }
        assert len(owners) == 4

    @pytest.mark.parametrize("local_loss", ["ce", "infopro"])
    def test_gradients_are_those_of_the_summed_loss_with_detached_boundaries(self, local_loss):
        mean, std = (0.4, 0.5, 0.6), (0.3, 0.2, 0.1)
        local = trainer(
            [1, 2, 4], local_loss=local_loss, weights=(2.0, 0.7), normalised=(mean, std)
        )
        reference = copy.deepcopy(local)
        raw, labels = batch()
        images = normalised(raw, Preparation(mean, std))
        logits = local.backward(images, cross_entropy(labels))

        stem, one, two, three, four, head = reference.network
        first, second = reference.auxiliaries
        x1 = one(stem(images))
        x2 = two(x1.detach())
        final = head(four(three(x2.detach())))
        total = F.cross_entropy(final, labels)
        for x, part in ((x1, first), (x2, second)):
            y = part.path.average(x) + part.path.biases[0](x)
            total = total + 0.7 * F.cross_entropy(part.head(y), labels)
            if local_loss == "infopro" or part.decoder is not None:
                total = total + 2.0 * F.binary_cross_entropy(part.decoder(y), raw)
        total.backward()
        close(gradients(local), gradients(reference))
        torch.testing.assert_close(logits, final.detach())
        assert float(local.losses_.sum()) == pytest.approx(float(total.detach()), rel=1e-5)

    def test_one_module_is_backpropagation(self):
        local = trainer(1)
        plain = copy.deepcopy(local.network)
        images, labels = batch()
        local.backward(images, cross_entropy(labels))
        end_to_end_backward(plain, images, cross_entropy(labels))
        close(gradients(local.network), gradients(plain))
        assert not list(local.auxiliaries.parameters())

    def test_checkpointing_has_the_gradients_of_backpropagation(self):
        local = trainer(4)
        plain = copy.deepcopy(local.network)
        images, labels = batch()
        ours = checkpointed_backward(local.local_modules, images, cross_entropy(labels))
        theirs = end_to_end_backward(plain, images, cross_entropy(labels))
        close(gradients(local.network), gradients(plain))
        torch.testing.assert_close(ours, theirs)

    def test_extra_term_is_asked_for_each_module_once(self):
        local, twin = trainer(3), trainer(3)
        images, labels = batch()
        seen = []

        def penalty(module):
            weights = list(module.parameters())
            seen.append({id(weight) for weight in weights})
            return sum(weight.square().sum() for weight in weights)

        local.backward(images, cross_entropy(labels), extra=penalty)
        twin.backward(images, cross_entropy(labels))
        assert set.union(*seen) == {id(weight) for weight in local.network.parameters()}
        assert sum(map(len, seen)) == len(list(local.network.parameters()))
        weights = dict(local.network.named_parameters())
        base = gradients(twin.network)
        close(
            gradients(local.network),
            {name: base[name] + 2 * weights[name].detach() for name in base},
        )


class TestMomentum:
    def test_average_follows_the_next_unit_in_closed_form(self):
        local = trainer(4, momentum=0.9)
        path, unit = local.auxiliaries[0].path, local.network[2]
        with torch.no_grad():
            for weight in unit.parameters():
                weight.add_(1.0)
        start = [weight.clone() for weight in path.average.parameters()]
        images, labels = batch()
        for _ in range(5):
            local.backward(images, cross_entropy(labels))
        for a, b, w in zip(start, path.average.parameters(), unit.parameters(), strict=True):
            torch.testing.assert_close(b, w + 0.9**5 * (a - w), rtol=1e-4, atol=1e-6)

    def test_average_takes_the_weights_before_the_optimiser_steps(self):
        local = trainer(4, momentum=0.5)
        path, unit = local.auxiliaries[1].path, local.network[3]
        before = [weight.detach().clone() for weight in unit.parameters()]
        start = [weight.clone() for weight in path.average.parameters()]
        images, labels = batch()
        optimizer = sgd(local, 1.0)
        local.backward(images, cross_entropy(labels))
        optimizer.step()
        for a, b, found in zip(start, before, path.average.parameters(), strict=True):
            torch.testing.assert_close(found, 0.5 * a + 0.5 * b)
        assert any(not torch.equal(a, b) for a, b in zip(before, unit.parameters(), strict=True))

    def test_batch_statistics_are_not_averaged(self):
        local = trainer(4, momentum=0.0)
        path, unit = local.auxiliaries[0].path, local.network[2]
        images, labels = batch()
        for _ in range(3):
            local.backward(images, cross_entropy(labels))
        # m = 0 makes the average the unit itself; it sees the same inputs one module earlier.
        unit.bn1.running_mean.fill_(7.0)
        local.backward(images, cross_entropy(labels))
        assert (path.average.bn1.running_mean - unit.bn1.running_mean).abs().min() > 1
        assert torch.equal(path.average.conv1.weight, unit.conv1.weight)

    def test_average_is_not_trained_but_passes_gradients_on(self):
        local = trainer(4, bias=None)
        images, labels = batch()
        local.backward(images, cross_entropy(labels))
        assert all(w.grad is None for w in local.auxiliaries[0].path.average.parameters())
        assert local.network[1].conv1.weight.grad.abs().sum() > 0

    def test_copies_start_as_copies_or_redrawn(self):
        x = torch.rand(3, 4, 8, 8)
        for start, same in (("copy", True), ("redrawn", False)):
            local = trainer(4, start=start)
            path, unit = local.auxiliaries[0].path, local.network[2]
            assert torch.allclose(path(x), 2 * unit(x), atol=1e-5) == same

    def test_two_learnable_copies_differ_and_have_no_average(self):
        local = trainer(4, momentum=None, bias="units")
        path = local.auxiliaries[0].path
        assert path.average is None
        one, two = path.biases
        assert torch.equal(one.conv1.weight, local.network[2].conv1.weight)
        assert not torch.equal(one.conv1.weight, two.conv1.weight)
        whole = trainer(4).auxiliaries[0]
        count = sum(weight.numel() for weight in local.auxiliaries[0].parameters())
        assert count == sum(weight.numel() for weight in whole.parameters())

    def test_vector_bias(self):
        local = trainer([2, 4], bias="vector")
        path = local.auxiliaries[0].path
        x = torch.rand(3, 4, 8, 8)
        with torch.no_grad():
            path.vector.copy_(torch.arange(8.0))
        expected = path.average(x) + torch.arange(8.0)[:, None, None]
        torch.testing.assert_close(path(x), expected)
        alone = trainer([2, 4], momentum=None, bias="vector").auxiliaries[0].path
        assert alone(x).shape == x.shape


class TestMemory:
    def test_rectifier_rows_hold_one_output_per_unit(self):
        """A unit of linear layer and ReLU saves its output once: it is the next one's input."""
        size, width, classes = 16, 32, 4

        def row(units):
            torch.manual_seed(0)
            layers = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(units + 1)]
            return [*layers, nn.Linear(width, classes)]

        images = torch.rand(size, width)
        reports = {}
        for units in (4, 8):
            local = LocalTrainer(
                row(units), units, "0c1f", momentum=None, bias=None, image=(width,)
            )
            reports[units] = local.memory_report(images)
        one = size * width * 4
        assert reports[8].end_to_end - reports[4].end_to_end == 4 * one
        # One module: its input, its output; the head's loss saves class chances and a scalar.
        head = reports[4].end_to_end - 5 * one
        assert reports[4].modules == reports[8].modules[:4]
        assert reports[4].peak == reports[8].peak == 2 * one + head
        assert set(reports[8].left) == {0}

    def test_maps_of_resnet32_by_hand(self):
        """Module 2 of K = 8: input, 4 maps in each of 2 blocks, 4 in the average, 4 in the copy."""
        torch.manual_seed(0)
        local = LocalTrainer(cifar_resnet(32), 8)
        report = local.memory_report(torch.rand(4, 3, 32, 32))
        one = 4 * 16 * 32 * 32 * 4
        # Their sum, and the head's convolution and ReLU at half the size and twice the channels.
        maps = 1 + 2 * 4 + 4 + 4 + 1 + 2 * 0.5
        assert report.modules[1] == pytest.approx(maps * one, rel=0.01)
        assert report.weights == 4 * 466_906
        assert report.share == report.modules[1] / report.end_to_end

    def test_each_module_frees_what_it_held(self):
        local = trainer(4, local_loss="infopro")
        images, labels = batch()
        ignore = [images, labels, *local.parameters()]
        with SavedTensors(ignore) as meter:
            for _ in local._steps(images, cross_entropy(labels), None, None):
                assert meter.peak > 0
                assert meter.live == 0

    def test_report_changes_nothing(self):
        local = trainer(3)
        before = {name: value.clone() for name, value in local.state_dict().items()}
        local.memory_report(torch.rand(4, *IMAGE))
        assert not gradients(local)
        for name, value in local.state_dict().items():
            assert torch.equal(value, before[name])

    def test_peak_falls_with_more_modules_and_checkpointing_holds_less(self):
        images, labels = torch.rand(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)
        torch.manual_seed(0)
        net = cifar_resnet(20, widths=(8, 16, 32))
        locals_ = {k: LocalTrainer(net, k, image=(3, 16, 16)) for k in (1, 3, 9)}
        peaks = {k: local.memory_report(images).peak for k, local in locals_.items()}
        assert peaks[1] > peaks[3] > peaks[9]
        assert peaks[1] == locals_[3].memory_report(images).end_to_end
        with SavedTensors([images, labels, *net.parameters()]) as meter:
            checkpointed_backward(locals_[3].local_modules, images, cross_entropy(labels))
        assert meter.live == 0
        assert meter.peak < peaks[3]


class TestTraining:
    def test_exported_network_is_the_plain_one(self):
        local = LocalTrainer(network(), 3, image=IMAGE).train()
        images, labels = batch()
        optimizer = sgd(local, 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            local.backward(images, cross_entropy(labels))
            optimizer.step()
        plain = network(seed=5)
        plain.load_state_dict(local.export().state_dict())
        assert list(local.export().state_dict()) == list(network().state_dict())
        torch.testing.assert_close(plain.eval()(images), local.eval()(images))
        exported = local.export()
        optimizer.step()
        torch.testing.assert_close(exported.eval()(images), plain(images))

    def test_parameter_counts(self):
        for depth, count in ((32, 466_906), (110, 1_730_714)):
            local = LocalTrainer(cifar_resnet(depth), published_partition(f"resnet{depth}", 8))
            assert sum(weight.numel() for weight in local.export().parameters()) == count

    @pytest.mark.parametrize(
        ("name", "count"),
        [
            ("resnet34", 21_797_672),
            ("resnet101", 44_549_160),
            ("resnet152", 60_192_808),
            ("resnext101_32x8d", 88_791_336),
        ],
    )
    def test_imagenet_networks_have_the_published_sizes(self, name, count):
        with torch.device("meta"):
            units = imagenet_resnet(name)
            assert units(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
        assert sum(weight.numel() for weight in units.parameters()) == count
        assert len(units) == published_partition(name, 2)[-1] + 2

    def test_fit_learns_digits(self):
        data = digit_pictures(torch.Generator().manual_seed(0), 500)
        torch.manual_seed(0)
        net = cifar_resnet(blocks=(1, 1), widths=(8, 16), channels=1)
        local = LocalTrainer(net, 2, "0c1f", image=(1, 8, 8))
        parts = torch.utils.data.TensorDataset(data.train_inputs, data.train_labels)
        loader = torch.utils.data.DataLoader(parts, 25, shuffle=True)
        local.fit(loader, epochs=4, warmup=1)
        assert accuracy(local.export(), data.test_inputs, data.test_labels) > 0.8
        assert len(local.history_) == 4
        first, last = (np.array(local.history_[place]["losses"]) for place in (0, -1))
        assert first.shape == (2,)
        assert (last < first).all()

    def test_rate(self):
        optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
        assert set_rate(optimizer, 0.8, 0.0) == pytest.approx(0.8)
        assert set_rate(optimizer, 0.8, 0.5) == pytest.approx(0.4)
        assert set_rate(optimizer, 0.8, 0.0, warmup=0.1) == pytest.approx(0.01)
        blended = 0.4 * (1 + math.cos(math.pi * 0.05)) * 0.5 + 0.005
        assert set_rate(optimizer, 0.8, 0.05, warmup=0.1) == pytest.approx(blended)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(blended)

    def test_other_rows_of_units(self):
        torch.manual_seed(0)
        labels = torch.arange(8) % 3
        cnn = LocalTrainer(
            small_cnn((4, 8, 8, 8), (1, 20, 20), 3, padding="same"), 3, image=(1, 20, 20)
        )
        cnn.train().backward(torch.rand(8, 1, 20, 20), cross_entropy(labels))
        assert len(gradients(cnn.network)) == len(list(cnn.network.parameters()))
        layers = list(mlp((6, 12, 12, 12, 3)))
        units = [nn.Sequential(*layers[i : i + 2]) for i in range(0, 6, 2)] + layers[6:]
        dense = LocalTrainer(units, 2, "0c2f", image=(6,))
        dense.backward(torch.rand(8, 6), cross_entropy(labels))
        assert len(gradients(dense.network)) == len(list(dense.network.parameters()))

    def test_contrast_trains_local_modules_on_labels(self):
        local = trainer(3, local_loss="contrast")
        images, labels = batch(12)
        local.backward(images, cross_entropy(labels), labels=labels)
        found = supervised_contrastive(torch.zeros(0, 3), labels[:0])
        assert math.isnan(float(found))
        assert local.auxiliaries[0].head[-1].out_features == 128
        with pytest.raises(DataError, match="needs the labels"):
            local.backward(images, cross_entropy(labels))

    def test_state_goes_out_and_in(self):
        one, two = trainer(3), trainer(3, seed=4)
        images, labels = batch()
        one.backward(images, cross_entropy(labels))
        two.load_state_dict(one.state_dict())
        for local in (one, two):
            local.zero_grad()
            local.backward(images, cross_entropy(labels))
        close(gradients(one), gradients(two))


class TestRefusals:
    @pytest.mark.parametrize("momentum", [1.0, -0.1, 1.5])
    def test_momentum(self, momentum):
        with pytest.raises(DataError, match="below 1"):
            trainer(momentum=momentum)

    def test_units_that_do_not_fit_are_named_with_both_shapes(self):
        units = list(network())
        units[2] = nn.Conv2d(9, 9, 3)
        with pytest.raises(DataError, match=r"unit '2'.*unit '1'.*\(4, 8, 8\).*\(9, 9, 3, 3\)"):
            LocalTrainer(units, 2, image=IMAGE)

    def test_reconstruction_of_what_is_no_picture(self):
        layers = [nn.Linear(6, 6) for _ in range(4)]
        with pytest.raises(DataError, match="needs pictures and feature maps"):
            LocalTrainer(layers, 2, "0c1f", local_loss="infopro", image=(6,))
        with pytest.raises(DataError, match="no maps"):
            LocalTrainer(layers, 2, "1c2f", image=(6,))

    def test_pictures_outside_the_unit_interval(self):
        images, labels = batch()
        local = trainer(local_loss="infopro")
        with pytest.raises(DataError, match=r"outside \[0, 1\]"):
            local.backward(images * 2 - 1, cross_entropy(labels))
        half = ((0.5,) * 3, (0.5,) * 3)
        trainer(local_loss="infopro", normalised=half).backward(
            images * 2 - 1, cross_entropy(labels)
        )

    def test_one_sample_for_batch_norm(self):
        images, labels = batch(1)
        with pytest.raises(DataError, match="a batch of 1"):
            trainer().backward(images, cross_entropy(labels))

    @pytest.mark.parametrize(
        ("settings", "word"),
        [
            ({"local_loss": "mse"}, "unknown local loss"),
            ({"bias": "matrix"}, "unknown bias"),
            ({"start": "zero"}, "unknown start"),
            ({"weights": [(0.0, 1.0)]}, "3: one for each of 4 modules"),
        ],
    )
    def test_choices(self, settings, word):
        with pytest.raises(DataError, match=word):
            trainer(**settings)

    def test_too_few_units(self):
        with pytest.raises(DataError, match="a stem, one unit or more, a head"):
            LocalTrainer([nn.Flatten(), nn.Linear(4, 2)], 1, image=(4,))


class TestStudy:
    def test_ridge_probe_against_scikit_learn(self):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(80, 30)), rng.integers(0, 3, 80)
        x[np.arange(80), y] += 1.0
        train, test = torch.tensor(x[:50]), torch.tensor(x[50:])
        centred = x[:50] - x[:50].mean(0)
        alpha = 0.01 * (centred**2).sum(1).mean()
        peer = Ridge(alpha=alpha).fit(x[:50], np.eye(3)[y[:50]])
        expected = (peer.predict(x[50:]).argmax(1) == y[50:]).mean()
        labels = torch.tensor(y)
        found = _ridge_accuracy(train, labels[:50], test, labels[50:])
        assert found == pytest.approx(expected)

    def test_probe_looks_at_each_unit(self):
        data = digit_pictures(torch.Generator().manual_seed(0), 100)
        torch.manual_seed(0)
        net = cifar_resnet(blocks=(2, 1), widths=(4, 8), channels=1)
        found = probe_accuracies(net, data)
        assert len(found) == 3
        # Random features of digits are far above chance, which is 0.1.
        assert all(0.5 < score < 1 for score in found)

    def test_crops_are_windows_of_the_padded_picture(self):
        images = torch.arange(2 * 3 * 6 * 6.0).view(2, 3, 6, 6)
        generator = torch.Generator().manual_seed(0)
        for how in (PREPARED["cifar10"]._replace(padding=3), Preparation((0,), (1,), 2, False)):
            seen = set()
            for _ in range(20):
                found = augmented(images, how, generator)
                edges = [how.padding] * 4
                padded = F.pad(images, edges, "reflect" if how.reflect else "constant")
                for picture, whole in zip(found, padded, strict=True):
                    size = 2 * how.padding + 1
                    places = [
                        (top, left, flip)
                        for top in range(size)
                        for left in range(size)
                        for flip in (False, True)
                        if torch.equal(
                            picture,
                            whole[:, top : top + 6, left : left + 6].flip(2)
                            if flip
                            else whole[:, top : top + 6, left : left + 6],
                        )
                    ]
                    assert places
                    seen.add(places[0])
            assert len(seen) > 10
            assert any(flip for *_, flip in seen) == how.flip

    def test_gap_and_slope(self):
        rows = []
        for seed in range(3):
            rows.append({"method": "e2e", "modules": 1, "accuracy": 0.9, "seed": seed})
            for k in (2, 4, 8):
                doublings = math.log2(k)
                rows.append({"method": "greedy", "modules": k, "accuracy": 0.9 - 0.05 * doublings})
                rows.append({"method": "man", "modules": k, "accuracy": 0.9 - 0.02 * doublings})
            for row in rows[-6:]:
                row["seed"] = seed
        table = pd.DataFrame(rows).assign(momentum=0.995)
        slopes = gap_slopes(table).groupby("method")["slope"].mean()
        assert slopes["greedy"] == pytest.approx(0.05)
        assert slopes["man"] == pytest.approx(0.02)
        deepest = table[table["modules"].isin([1, 8])]
        assert gap_closed(deepest)["closed"].tolist() == pytest.approx([0.6] * 3)

    def test_memory_outcomes(self):
        held = {("e2e", 1): 10.0, ("man-dgl", 2): 8.0, ("man-dgl", 4): 8.5, ("man-dgl", 8): 4.0}
        table = pd.DataFrame(
            [
                {"part": "memory", "network": "resnet32", "method": m, "modules": k, "saved_mib": v}
                for (m, k), v in held.items()
            ]
        )
        assert list(memory_falls(table).values()) == [True, False, True, True]
        large = pd.DataFrame(
            [
                {"part": "memory", "network": n, "method": m, "modules": 2, "saved_mib": v}
                for n, m, v in (
                    ("resnet101", "e2e", 10.0), ("resnet101", "man-infopro", 6.0),
                    ("resnet152", "e2e", 10.0), ("resnet152", "man-infopro", 5.0),
                )
            ]
        )  # fmt: skip
        assert imagenet_saves(large) == {"resnet101": False, "resnet152": True}

    def test_methods_of_one_seed_start_from_the_same_network(self):
        states = []
        for method in ("e2e", "greedy", "man", "man-infopro"):
            torch.manual_seed(3)
            net = network_of(Cell(), 1)
            trainer_of(Cell(method=method, modules=1 if method == "e2e" else 9), net, (1, 8, 8))
            states.append(net.state_dict())
        for state in states[1:]:
            assert all(torch.equal(state[name], states[0][name]) for name in state)

    def test_claims_of_half_a_table_are_open(self):
        from peira.engine.catalogue import paper

        study = Study(paper("man").card)
        held = {"part": "memory", "network": "resnet32", "method": "e2e", "modules": 1, "seed": 0}
        row = {**held, "data": "digits", "momentum": 0.995, "saved_mib": 3.0, "accuracy": math.nan}
        verdicts = [one.verdict for one in study.claims(pd.DataFrame([row]))]
        assert verdicts == ["inconclusive"] * len(study.card.claims)
        trained = {**row, "part": "accuracy", "method": "man", "modules": 9, "accuracy": 0.9}
        verdicts = [one.verdict for one in study.claims(pd.DataFrame([trained]))]
        assert verdicts == ["inconclusive"] * len(study.card.claims)

    def test_released_command(self):
        cell = Cell(method="released", network="resnet32", modules=16)
        local = trainer_of(cell, network_of(cell, 3), (3, 32, 32))
        assert local.ends == list(range(1, 16))
        assert local.weights == released_weights("resnet32", 16)
        head = local.auxiliaries[0].head
        assert sum(isinstance(layer, nn.Conv2d) for layer in head) == 2
        assert local.auxiliaries[13].decoder is not None

    def test_paper_scale_has_the_published_partitions(self):
        from peira.engine.catalogue import paper

        cells = Study(paper("man").card).scale("paper").conditions()
        assert {cell.network for cell in cells} >= {"resnet32", "resnet110", "resnet152"}
        for cell in cells:
            if cell.method == "man":
                assert cell.modules == 1 or cell.modules in PUBLISHED[cell.network]


OWN = """
import torch
from torch import nn

def make():
    block = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(block(1, 8), block(8, 8), block(8, 8), head)

def broken():
    return nn.Linear(2, 2)
"""


@pytest.fixture
def pictures(tmp_path):
    images, labels = digits()
    path = tmp_path / "digits.npz"
    np.savez(path, x=images[:200, None] / 16, y=labels[:200])
    return path


class TestUse:
    def test_train_and_classify(self, pictures, tmp_path, capsys):
        weights, classes = tmp_path / "net.safetensors", tmp_path / "classes.csv"
        options = ["--epochs", "2", "--width", "4", "--network", "resnet8", "--modules", "3"]
        run("train", pictures, "--out", weights, *options, "--partition", "balanced")
        plain = cifar_resnet(8, widths=(4, 8, 16), channels=1)
        plain.load_state_dict(load_file(weights))
        said = capsys.readouterr().out
        assert "of end to end" in said
        assert "on 40 pictures kept apart" in said
        run("classify", weights, pictures, "--out", classes)
        table = pd.read_csv(classes)
        with np.load(pictures) as file:
            logits = plain.eval()(torch.tensor(file["x"], dtype=torch.float32))
        assert (table["class"] == logits.argmax(1).numpy()).all()
        assert "on 200 pictures" in capsys.readouterr().out

    def test_own_network(self, pictures, tmp_path):
        code, weights = tmp_path / "mine.py", tmp_path / "net.safetensors"
        code.write_text(OWN)
        run("train", pictures, "--network", f"{code}:make", "--modules", "2", "--out", weights,
            "--epochs", "1", "--local-loss", "infopro")  # fmt: skip
        assert "3.2.weight" in load_file(weights)
        with pytest.raises(DataError, match=r"an nn\.Sequential of a stem"):
            run("train", pictures, "--network", f"{code}:broken", "--out", weights)

    def test_memory(self, pictures, tmp_path):
        out = tmp_path / "memory.csv"
        run("memory", pictures, "--network", "resnet20", "--width", "4", "--modules", "3,9",
            "--batch", "8", "--repeats", "1", "--out", out)  # fmt: skip
        table = pd.read_csv(out)
        assert table["method"].tolist() == [
            "end to end", "MAN", "MAN, balanced", "checkpointing", "MAN", "MAN, balanced",
            "checkpointing",
        ]  # fmt: skip
        assert table["share"][0] == 1
        assert (table["share"][1:] < 1).all()
        held = table.set_index(["method", "K"])["MiB"]
        assert held["MAN, balanced", 3] <= held["MAN", 3]

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (["--modules", "40"], "1 to 9, the units"),
            (["--momentum", "1"], "below 1"),
            (["--partition", "a,b"], "whole numbers"),
            (["--partition", "3,5"], "the last of them 9"),
            (["--network", "resnet21"], "6n [+] 2"),
            (["--network", "nothing.py:make"], "no such file"),
            (["--test", "1.5"], "between 0 and 1"),
        ],
    )
    def test_bad_options(self, pictures, arguments, word):
        with pytest.raises(Exception, match=word):
            run("train", pictures, *arguments)

    def test_bad_pictures(self, tmp_path):
        path = tmp_path / "bad.npz"
        np.savez(path, x=np.full((9, 1, 8, 8), 3.0), y=np.arange(9) % 3)
        with pytest.raises(DataError, match=r"outside \[0, 1\]"):
            run("train", path)
        np.savez(path, x=np.zeros((9, 1, 8, 8)))
        with pytest.raises(DataError, match="without labels"):
            run("train", path)
        np.savez(path, x=np.zeros((9, 1, 8, 8)), y=np.zeros(9))
        with pytest.raises(DataError, match="only one class"):
            run("train", path)

    def test_weights_of_others(self, pictures, tmp_path):
        from peira.data import write_tensors

        path = tmp_path / "other.safetensors"
        write_tensors(path, {"a": torch.zeros(1)})
        with pytest.raises(DataError, match="not a locally trained network"):
            run("classify", path, pictures)


def run(*words):
    with pytest.raises(SystemExit) as end:
        run_command("man", [str(word) for word in words])
    assert end.value.code == 0
