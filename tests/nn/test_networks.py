"""Reference networks: published parameter counts, shapes, causality."""

import pytest
import torch
from torch import nn

from peira.nn import BasicBlock, TinyGPT, cifar_resnet, mlp, small_cnn


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("depth", "classes", "shortcut", "published"),
    [
        (32, 10, "conv", 466_906),
        (110, 10, "conv", 1_730_714),
        (20, 100, "pad", 275_572),
        (56, 100, "pad", 858_868),
        (110, 100, "pad", 1_733_812),
        (20, 100, "conv", 278_324),
        (56, 100, "conv", 861_620),
        (110, 100, "conv", 1_736_564),
    ],
)
def test_residual_networks_have_the_published_number_of_parameters(
    depth, classes, shortcut, published
):
    assert count(cifar_resnet(depth, classes, shortcut=shortcut)) == published


def test_wide_pair_of_the_distillation_benchmarks():
    # 7.43 and 1.23 million in the protocol of Tian et al. 2020.
    wide = {"widths": (64, 128, 256), "stem": 32}
    assert round(count(cifar_resnet(32, 100, **wide)) / 1e6, 2) == 7.43
    assert round(count(cifar_resnet(8, 100, **wide)) / 1e6, 2) == 1.23


def test_small_cnn_is_that_of_cyclical_curriculum():
    network = small_cnn()
    statistics = sum(b.numel() for b in network.buffers() if b.ndim)
    assert (count(network) + statistics, statistics) == (67_210, 320)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_residual_network_is_a_list_of_units():
    network = cifar_resnet(blocks=(2, 1), widths=(4, 8), channels=1, classes=3)
    x = torch.randn(5, 1, 8, 8)
    seen = x
    for unit in network:
        seen = unit(seen)
    assert torch.equal(seen, network(x))
    names = [name for name, _ in network.named_children()]
    assert names == ["stem", "stage1_0", "stage1_1", "stage2_0", "head"]
    assert network.stage2_0(torch.zeros(1, 4, 8, 8)).shape == (1, 8, 4, 4)


def test_pad_shortcut_keeps_the_old_channels_in_the_middle():
    block = BasicBlock(2, 4, stride=2, shortcut="pad")
    x = torch.randn(1, 2, 4, 4)
    short = block.downsample(x)
    assert torch.equal(short[:, 1:3], x[:, :, ::2, ::2])
    assert short[:, [0, 3]].abs().sum() == 0


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda: cifar_resnet(21), "6n"),
        (lambda: cifar_resnet(), "either"),
        (lambda: cifar_resnet(blocks=(1, 1)), "widths"),
        (lambda: small_cnn(image=(1, 8, 8)), "too small"),
        (lambda: mlp((3,)), "widths"),
        (lambda: mlp((3, 4, 2), "swoosh"), "swoosh"),
        (lambda: TinyGPT(5, 4, width=6), "multiple"),
    ],
)
def test_impossible_networks_are_refused(wrong, why):
    with pytest.raises(ValueError, match=why):
        wrong()


def test_gpt_sees_only_the_past():
    torch.manual_seed(0)
    network = TinyGPT(11, 8, width=16, layers=2, heads=4)
    tokens = torch.randint(11, (3, 8))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    before, after = network(tokens), network(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax() > 1e-4
    with pytest.raises(ValueError, match="context"):
        network(torch.zeros(1, 9, dtype=torch.long))


def test_gpt_attention_is_that_of_torch():
    """One block against `nn.TransformerEncoderLayer` with the same weights."""
    torch.manual_seed(1)
    ours = TinyGPT(7, 6, width=8, layers=1, heads=2).blocks[0]
    peer = nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    pairs = {
        "self_attn.in_proj_weight": ours.attention.weight,
        "self_attn.in_proj_bias": ours.attention.bias,
        "self_attn.out_proj.weight": ours.project.weight,
        "self_attn.out_proj.bias": ours.project.bias,
        "linear1.weight": ours.mlp[0].weight,
        "linear1.bias": ours.mlp[0].bias,
        "linear2.weight": ours.mlp[2].weight,
        "linear2.bias": ours.mlp[2].bias,
    }
    peer.load_state_dict(pairs, strict=False)
    x = torch.randn(2, 6, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    torch.testing.assert_close(ours(x), peer(x, src_mask=mask, is_causal=True))
