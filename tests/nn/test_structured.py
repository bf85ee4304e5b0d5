"""Removed channels and blocks: the same outputs from a smaller network."""

import copy

import pytest
import torch
from torch import nn

from peira.nn import apply_masks, cifar_resnet, cost, flops, residual_blocks, slim, unit_flops
from peira.nn.structured import inner_convolutions


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = cifar_resnet(blocks=(2, 2), widths=(6, 8), channels=1, classes=3)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return made.eval()


class Bottleneck(nn.Module):
    """As torchvision names its parts."""

    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, inputs, 1, bias=False), nn.BatchNorm2d(inputs)
        self.downsample = None

    def forward(self, x):
        hidden = torch.relu(self.bn1(self.conv1(x)))
        hidden = torch.relu(self.bn2(self.conv2(hidden)))
        return torch.relu(x + self.bn3(self.conv3(hidden)))


def silence(block: nn.Module, norm: str, gone: list[int]) -> None:
    """Batch norm's scale and shift zero: the channel is zero after the ReLU."""
    with torch.no_grad():
        block.get_submodule(norm).weight[gone] = 0
        block.get_submodule(norm).bias[gone] = 0


def test_taking_out_silent_channels_changes_no_output():
    full = network()
    silence(full.stage1_1, "bn1", [0, 2])
    silence(full.stage2_0, "bn1", [1, 3, 5])
    kept = {"stage1_1": torch.tensor([1, 3, 4, 5]), "stage2_0": torch.tensor([0, 2, 4, 6, 7])}
    small = slim(full, kept)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(small(x), full(x))
    assert small.stage1_1.conv1.weight.shape == (4, 6, 3, 3)
    assert small.stage2_0.conv2.weight.shape == (8, 5, 3, 3)
    before, after = cost(full, x, repeats=1), cost(small, x, repeats=1)
    assert after.flops < before.flops
    assert after.parameters < before.parameters
    assert after.bytes < before.bytes


def test_a_closed_block_becomes_its_shortcut():
    full = network()
    small = slim(full, {"stage1_1": None, "stage2_0": None})
    x = torch.randn(4, 6, 8, 8)
    torch.testing.assert_close(small.stage1_1(x), torch.relu(x))
    torch.testing.assert_close(small.stage2_0(x), torch.relu(full.stage2_0.downsample(x)))
    assert set(residual_blocks(small)) == {"stage1_0", "stage2_1"}


def test_the_precision_stays():
    small = slim(network().double(), {"stage1_0": torch.tensor([0, 2])})
    assert {part.dtype for part in small.parameters()} == {torch.double}
    assert small(torch.randn(2, 1, 8, 8).double()).dtype == torch.double


def test_a_plain_state_dict_loads_into_the_same_shape():
    kept = {"stage1_0": torch.tensor([0, 5]), "stage1_1": None, "stage2_0": None}
    small = slim(network(), kept)
    torch.manual_seed(9)
    fresh = cifar_resnet(blocks=(2, 2), widths=(6, 8), channels=1, classes=3)
    again = slim(fresh, kept).eval()
    again.load_state_dict(small.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(x), small(x))


def test_the_network_itself_stays():
    full = network()
    before = copy.deepcopy(full.state_dict())
    slim(full, {"stage1_0": torch.tensor([1]), "stage2_1": None})
    after = full.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_masks_become_plain_weights():
    full = network()
    masks = {"stage1_0.conv1.weight": torch.rand(6, 6, 3, 3) > 0.5}
    apply_masks(full, masks)
    small = slim(full, {"stage1_0": torch.tensor([1, 2]), "stage2_1": None})
    expected = full.stage1_0.conv1.weight[[1, 2]]
    assert torch.equal(small.stage1_0.conv1.weight, expected)
    assert not [name for name in small.state_dict() if "parametrizations" in name]
    assert "parametrizations.weight.0.kept" in "".join(full.state_dict())


def test_both_inner_convolutions_of_a_bottleneck():
    torch.manual_seed(0)
    full = nn.Sequential(Bottleneck(5, 4)).eval()
    assert [trio[0] for trio in inner_convolutions(full[0])] == ["conv1", "conv2"]
    silence(full[0], "bn1", [0])
    silence(full[0], "bn2", [2, 3])
    small = slim(full, {"0.conv1": torch.tensor([1, 2, 3]), "0.conv2": torch.tensor([0, 1])})
    x = torch.randn(3, 5, 4, 4)
    torch.testing.assert_close(small(x), full(x))
    assert small[0].conv2.weight.shape == (2, 3, 3, 3)
    assert small[0].conv2.bias.shape == (2,)


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        ({"stem": None}, "no residual block 'stem'"),
        ({"stage1_0": torch.tensor([], dtype=torch.long)}, "no channel"),
        ({"stage1_0": torch.tensor([6])}, "channels 0 to 5"),
    ],
)
def test_impossible_removals_are_refused(kept, why):
    with pytest.raises(ValueError, match=why):
        slim(network(), kept)


def test_operations_of_a_convolution_by_hand():
    layer = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Conv2d(5, 2, 1, bias=False))
    x = torch.zeros(2, 3, 8, 8)
    first, second = 2 * 2 * 64 * 5 * 3 * 9, 2 * 2 * 64 * 2 * 5
    assert flops(layer, x) == first + second
    assert unit_flops(layer, x, ["0", "1"]) == {"0": first, "1": second}
