"""Curvature products, Lanczos and spectra against explicit matrices and curvlinops."""

from __future__ import annotations

import copy
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from peira.data import DataError
from peira.dynamics.probes import curvature as c
from peira.engine.errors import PeiraError

torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(widths: tuple[int, ...] = (5, 7, 3), activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1]).double()


def examples(n: int = 40, features: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(n, features, generator=seeded(1), dtype=torch.float64)
    return inputs, torch.randint(0, classes, (n,), generator=seeded(2))


def explicit_hessian(model: nn.Module, loss: c.Loss, data: tuple[Tensor, Tensor]) -> Tensor:
    """By plain double backward, one row at a time, on the model itself."""
    weights = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss(model(data[0]), data[1]), weights, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rows = [torch.autograd.grad(entry, weights, retain_graph=True) for entry in flat]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def explicit_ggn(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over examples of J^T (diag p - p p^T) J for the cross-entropy."""
    weights = list(model.parameters())
    total: Tensor | float = 0.0
    for x in data[0]:
        logits = model(x[None])[0]
        rows = [torch.autograd.grad(out, weights, retain_graph=True) for out in logits]
        jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
        p = logits.softmax(0).detach()
        total = total + jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    assert isinstance(total, Tensor)
    return total / len(data[0])


def matrix(operator: c.Operator) -> Tensor:
    return operator @ torch.eye(operator.size, dtype=operator.dtype)


def of_matrices(*matrices: Tensor) -> c.Operator:
    stack = torch.stack(matrices)
    if len(matrices) == 1:
        return c.Operator(lambda v: v @ stack[0], len(stack[0]), None, stack.dtype, stack.device)
    return c.Operator(
        lambda v: (stack @ v[:, :, None])[:, :, 0],
        stack.shape[1],
        len(stack),
        stack.dtype,
        stack.device,
    )


@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
def test_products_are_those_of_the_explicit_matrices(chunk: int | None) -> None:
    model, data = net(), examples()
    hessian = matrix(c.hessian_operator(model, F.cross_entropy, data, chunk=chunk))
    expected = explicit_hessian(model, F.cross_entropy, data)
    torch.testing.assert_close(hessian, expected, atol=1e-12, rtol=1e-9)
    ggn = matrix(c.ggn_operator(model, F.cross_entropy, data, chunk=chunk))
    torch.testing.assert_close(ggn, explicit_ggn(model, data), atol=1e-12, rtol=1e-9)
    assert torch.linalg.eigvalsh(ggn)[0] > -1e-12
    assert torch.linalg.eigvalsh(hessian)[0] < -1e-3


def test_gauss_newton_is_the_hessian_where_the_outputs_are_linear() -> None:
    data = examples()
    target = torch.randn(40, 3, generator=seeded(3), dtype=torch.float64)
    for loss, truth in ((F.cross_entropy, data[1]), (F.mse_loss, target)):
        pair = (data[0], truth)
        one, other = (
            matrix(c.curvature_operator(kind, net((5, 3)), loss, pair))
            for kind in ("hessian", "ggn")
        )
        torch.testing.assert_close(one, other)
    # Squared error of x w: X^T X 2 / n for each output, hence 2 / (3 n) of the mean over outputs.
    gram = data[0].T @ data[0] * 2 / (3 * 40)
    weights = matrix(c.hessian_operator(net((5, 3)), F.mse_loss, (data[0], target)))[:15, :15]
    torch.testing.assert_close(weights, torch.block_diag(gram, gram, gram))


def test_products_agree_with_curvlinops() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, data = net((5, 8, 6, 3), nn.GELU), examples(60)
    loss = nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(*data), batch_size=25)
    params = list(model.parameters())
    peers = {"hessian": curvlinops.HessianLinearOperator, "ggn": curvlinops.GGNLinearOperator}
    vector = torch.randn(sum(p.numel() for p in params), 4, generator=seeded(4)).double()
    for kind, peer in peers.items():
        theirs = peer(model, loss, params, loader) @ vector
        ours = c.curvature_operator(kind, model, loss, loader, chunk=16) @ vector
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


class Attention(nn.Module):
    """One attention block with a normalised convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.read = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.embed(x)).mT
        return self.read(F.scaled_dot_product_attention(h, h, h).mean(dim=1))


def test_convolutions_attention_and_fixed_normalisation_are_differentiated_twice() -> None:
    torch.manual_seed(0)
    model = Attention().double().eval()
    model.norm.running_var.fill_(2.0)
    data = (torch.randn(12, 2, 5, generator=seeded(5)).double(), torch.arange(12) % 3)
    expected = explicit_hessian(model, F.cross_entropy, data)
    ours = matrix(c.hessian_operator(model, F.cross_entropy, data, chunk=5))
    torch.testing.assert_close(ours, expected, atol=1e-11, rtol=1e-8)
    batches = c.batch_operators(
        "hessian", model, F.cross_entropy, data[0].view(3, 4, 2, 5), data[1].view(3, 4)
    )
    vector = torch.randn(batches.size, generator=seeded(6)).double()
    mean = batches.apply(vector.expand(3, -1)).mean(dim=0)
    torch.testing.assert_close(mean, expected @ vector, atol=1e-11, rtol=1e-8)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_rows_of_batch_products_belong_to_their_batch(kind: c.Kind) -> None:
    model, (inputs, targets) = net(), examples(24)
    together = c.batch_operators(
        kind, model, F.cross_entropy, inputs.view(4, 6, 5), targets.view(4, 6)
    )
    vectors = torch.randn(4, together.size, generator=seeded(7)).double()
    products = together.apply(vectors)
    for i, (x, y) in enumerate(zip(inputs.split(6), targets.split(6), strict=True)):
        single = c.curvature_operator(kind, model, F.cross_entropy, (x, y))
        torch.testing.assert_close(products[i], single @ vectors[i])


def test_selected_parameters_give_the_diagonal_block() -> None:
    model, data = net(), examples()
    whole = explicit_hessian(model, F.cross_entropy, data)
    first = matrix(c.hessian_operator(model, F.cross_entropy, data, params=["0"]))
    torch.testing.assert_close(first, whole[:42, :42], atol=1e-12, rtol=1e-9)
    bias = matrix(c.hessian_operator(model, F.cross_entropy, data, params=["2.bias"]))
    torch.testing.assert_close(bias, whole[-3:, -3:], atol=1e-12, rtol=1e-9)
    model[0].requires_grad_(False)
    rest = matrix(c.hessian_operator(model, F.cross_entropy, data))
    torch.testing.assert_close(rest, whole[42:, 42:], atol=1e-12, rtol=1e-9)
    frozen = matrix(c.hessian_operator(model, F.cross_entropy, data, params=["0"]))
    torch.testing.assert_close(frozen, first)
    with pytest.raises(DataError, match="no parameter 'head'"):
        c.hessian_operator(model, F.cross_entropy, data, params=["head"])


@pytest.mark.parametrize("chunk", [None, 10])
def test_an_operator_stays_at_its_weights(chunk: int | None) -> None:
    model, data = net(), examples()
    expected = explicit_hessian(model, F.cross_entropy, data)
    operators = [
        c.hessian_operator(model, F.cross_entropy, data, chunk=chunk, params=params)
        for params in (None, ["0"])
    ]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    torch.testing.assert_close(matrix(operators[0]), expected, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(matrix(operators[1]), expected[:42, :42], atol=1e-12, rtol=1e-9)


def test_random_layers_are_frozen_with_a_warning_and_left_as_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)
    ).double()
    data = examples()
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="BatchNorm1d, Dropout in training mode"):
        ours = matrix(c.hessian_operator(model, F.cross_entropy, data, chunk=16))
    assert all(layer.training for layer in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    expected = explicit_hessian(model.eval(), F.cross_entropy, data)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        c.hessian_operator(model, F.cross_entropy, data)


def test_what_is_no_mean_loss_is_refused() -> None:
    model, data = net(), examples()

    def unreduced(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y, reduction="none")

    def summed(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y, reduction="sum")

    with pytest.raises(DataError, match=r"no scalar; got \(16,\)"):
        c.hessian_operator(model, unreduced, data)
    with pytest.raises(DataError, match="no mean over the examples"):
        c.hessian_operator(model, summed, data, chunk=8)
    torch.testing.assert_close(
        matrix(c.hessian_operator(model, summed, data)),
        40 * explicit_hessian(model, F.cross_entropy, data),
    )
    with pytest.raises(DataError, match="the loss is random"):
        c.hessian_operator(model, lambda out, y: F.cross_entropy(F.dropout(out), y), data)
    with pytest.raises(DataError, match="the loss is not finite"):
        c.hessian_operator(model, lambda out, y: out.sum() * math.inf, data)
    # |x|^1.5 has an infinite second derivative at 0.
    flat = nn.Linear(5, 3).double()
    nn.init.zeros_(flat.weight)
    nn.init.zeros_(flat.bias)
    infinite = c.hessian_operator(flat, lambda out, y: out.abs().pow(1.5).mean(), data)
    with pytest.raises(PeiraError, match="not finite"):
        infinite @ torch.ones(18, dtype=torch.float64)


def test_broken_data_is_refused() -> None:
    model, (inputs, targets) = net(), examples()
    with pytest.raises(DataError, match=r"differ in length; got \(40, 39\)"):
        c.hessian_operator(model, F.cross_entropy, (inputs, targets[1:]))
    with pytest.raises(DataError, match="no examples"):
        c.hessian_operator(model, F.cross_entropy, [])
    with pytest.raises(DataError, match="impossible batch size; got 41; expected 1 to 40"):
        c.draw_batches((inputs, targets), 41, 2)
    with pytest.raises(DataError, match="wrong shape"):
        c.hessian_operator(model, F.cross_entropy, (inputs, targets)) @ torch.ones(5).double()


def test_data_sets_loaders_and_tensors_are_the_same_data() -> None:
    data = examples(40)
    pairs = TensorDataset(*data)
    for form in (data, list(data), pairs, DataLoader(pairs, batch_size=7)):
        gathered = c.gather(form)
        assert all(torch.equal(a, b) for a, b in zip(gathered, data, strict=True))


def test_batches_are_drawn_without_replacement() -> None:
    inputs, targets = torch.arange(10.0)[:, None], torch.arange(10)
    x, y = c.draw_batches((inputs, targets), 10, 5, seeded())
    assert torch.equal(x[..., 0].sort(dim=1).values, torch.arange(10.0).expand(5, -1))
    assert torch.equal(x[..., 0].long(), y)
    assert len(x.unique(dim=0)) > 1


def test_gradient_moments_are_those_of_single_examples() -> None:
    model, data = net(), examples(21)
    rows = []
    for x, y in zip(*data, strict=True):
        loss = F.cross_entropy(model(x[None]), y[None])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    mean, variance = c.gradient_moments(model, F.cross_entropy, data, chunk=8)
    torch.testing.assert_close(mean, torch.stack(rows).mean(dim=0))
    torch.testing.assert_close(variance, torch.stack(rows).var(dim=0))


def test_lanczos_is_exact_on_the_whole_space_also_where_it_closes() -> None:
    """A multiple eigenvalue, and a start inside an invariant subspace, both close early."""
    basis, _ = torch.linalg.qr(torch.randn(12, 12, generator=seeded(8)).double())
    spectra = [
        torch.linspace(-2, 5, 12).double(),
        torch.tensor([3.0] * 5 + [1.0] * 4 + [-1.0] * 3).double(),
        torch.arange(12).double(),
    ]
    stack = [basis @ torch.diag(s) @ basis.T for s in spectra]
    start = torch.randn(3, 12, generator=seeded(9)).double()
    start[2] = basis[:, 4] * 2 + basis[:, 7]
    found = c.lanczos(of_matrices(*stack).apply, start, 50)
    assert found.values.shape == (3, 12)
    for i, spectrum in enumerate(spectra):
        torch.testing.assert_close(found.values[i], spectrum.sort().values)
        torch.testing.assert_close(
            found.basis[i] @ found.basis[i].T, torch.eye(12).double(), atol=1e-10, rtol=0
        )
    expected = torch.zeros(12).double()
    expected[4], expected[7] = 0.8, 0.2
    torch.testing.assert_close(found.weights[2], expected)
    torch.testing.assert_close(found.weights.sum(dim=1), torch.ones(3).double())


def test_single_precision_stays_orthogonal() -> None:
    """Without re-orthogonalisation the dominant eigenvalue would come back as ghosts."""
    spectrum = torch.cat([torch.linspace(0, 1, 297), torch.tensor([50.0, 80.0, 100.0])])
    basis, _ = torch.linalg.qr(torch.randn(300, 300, generator=seeded(10)))
    operator = of_matrices(basis @ torch.diag(spectrum) @ basis.T)
    found = c.lanczos(operator.apply, c.random_start(operator, 1, seeded()), 80)
    gram = found.basis[0] @ found.basis[0].T
    assert (gram - torch.eye(80)).abs().max() < 1e-4
    assert (found.values[0] > 10).sum() == 3


def test_residual_bounds_hold() -> None:
    a = torch.randn(80, 80, generator=seeded(11)).double()
    a = (a + a.T) / 2
    truth = torch.linalg.eigvalsh(a)
    found = c.lanczos(of_matrices(a).apply, torch.ones(1, 80).double(), 20)
    distance = (found.values[0][:, None] - truth[None]).abs().amin(dim=1)
    assert (distance <= found.residuals[0] + 1e-12).all()
    vector = found.vectors(-1)[0]
    residual = (a @ vector - found.values[0, -1] * vector).norm()
    torch.testing.assert_close(residual, found.residuals[0, -1])


def test_extreme_eigenvalues_are_those_of_numpy_and_of_eigsh() -> None:
    model, data = net(), examples()
    operator = c.hessian_operator(model, F.cross_entropy, data)
    expected = np.linalg.eigvalsh(explicit_hessian(model, F.cross_entropy, data).numpy())
    found = c.extreme_eigenvalues(operator, 3, 2, tolerance=1e-9, generator=seeded())
    ends = expected[[-1, -2, -3, 1, 0]]
    np.testing.assert_allclose(found.values.numpy(), ends, rtol=1e-6)
    assert (found.residuals <= 1e-9 * expected[-1]).all()
    torch.testing.assert_close(
        operator @ found.vectors.T, (found.values[:, None] * found.vectors).T, atol=1e-7, rtol=1e-5
    )
    linear = operator.scipy()
    np.testing.assert_allclose(
        eigsh(linear, 2, which="LA", return_eigenvectors=False), ends[[1, 0]], rtol=1e-8
    )
    assert c.sharpness(model, F.cross_entropy, data) == pytest.approx(expected[-1], rel=1e-3)
    with pytest.warns(UserWarning, match="3 Lanczos steps leave residual bounds"):
        c.extreme_eigenvalues(operator, steps=3, generator=seeded())
    with pytest.raises(DataError, match="cannot give these eigenvalues"):
        c.extreme_eigenvalues(operator, operator.size + 1)


def test_scaling_is_that_of_both_sides() -> None:
    model, data = net(), examples()
    operator = c.ggn_operator(model, F.cross_entropy, data)
    scale = torch.rand(operator.size, generator=seeded(12)).double() + 0.5
    expected = scale[:, None] * explicit_ggn(model, data) * scale
    torch.testing.assert_close(matrix(operator.scaled(scale)), expected, atol=1e-12, rtol=1e-9)


def test_quadrature_gives_moments_and_density_within_its_error_bars() -> None:
    a = torch.randn(400, 400, generator=seeded(13)).double()
    a = (a + a.T) / math.sqrt(2 * 400)
    truth = torch.linalg.eigvalsh(a)
    found = c.spectral_density(of_matrices(a), steps=40, probes=30, generator=seeded())
    for power in (1, 2, 3, 4):
        mean, error = found.mean(lambda x, p=power: x**p)
        assert abs(mean - float((truth**power).mean())) < 4 * error
        # A probe's own value scatters by at most sqrt(2 tr f^2) / P: what 30 of them leave.
        expected = math.sqrt(2 * float((truth ** (2 * power)).sum()) / 30) / 400
        assert error < 1.5 * expected
    grid = torch.linspace(-2.5, 2.5, 41).double()
    density, error = found.density(grid, 0.1)
    kernel = torch.exp(-(((grid[:, None] - truth) / 0.1) ** 2) / 2) / (0.1 * math.sqrt(2 * math.pi))
    exact = kernel.mean(dim=1)
    assert ((density - exact).abs() < 4.5 * error + 1e-3).all()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-3)
    share, error = found.cumulative(torch.tensor([0.0]).double())
    assert abs(float(share) - float((truth <= 0).double().mean())) < 4 * float(error) + 0.02
    assert math.isnan(c.spectral_density(of_matrices(a), steps=5, probes=1).mean(torch.exp)[1])


def test_a_full_length_quadrature_is_exact_for_each_probe() -> None:
    a = torch.randn(15, 15, generator=seeded(14)).double()
    a = a + a.T
    operator = of_matrices(a)
    found = c.spectral_density(operator, steps=15, probes=4, generator=seeded(3))
    probes = c.random_start(operator, 4, seeded(3))
    for power in (1, 5):
        exact = torch.einsum("kp,pq,kq->k", probes, torch.linalg.matrix_power(a, power), probes)
        ours = (found.weights * found.nodes**power).sum(dim=1) * 15
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_batch_spectra_are_those_of_each_batch(kind: c.Kind) -> None:
    model, data = net(), examples()
    found = c.batch_spectra(
        kind, model, F.cross_entropy, data, 6, count=5, tolerance=1e-8, generator=seeded(2)
    )
    inputs, targets = c.draw_batches(data, 6, 5, seeded(2))
    for i in range(5):
        pair = (inputs[i], targets[i])
        exact = (
            explicit_ggn(model, pair)
            if kind == "ggn"
            else explicit_hessian(model, F.cross_entropy, pair)
        )
        values, vectors = torch.linalg.eigh(exact)
        assert float(found.largest[i]) == pytest.approx(float(values[-1]), rel=1e-6)
        assert float(found.smallest[i]) == pytest.approx(float(values[0]), abs=1e-6)
        assert float(found.overlaps(vectors[:, -1])[i]) == pytest.approx(1, abs=1e-6)


def test_a_batch_of_everything_is_the_full_curvature() -> None:
    model, data = net(), examples()
    whole = torch.linalg.eigvalsh(explicit_hessian(model, F.cross_entropy, data))
    found = c.batch_spectra("hessian", model, F.cross_entropy, data, 40, count=2, tolerance=1e-8)
    torch.testing.assert_close(found.largest, whole[-1].expand(2), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(found.smallest, whole[0].expand(2), atol=1e-7, rtol=1e-6)
