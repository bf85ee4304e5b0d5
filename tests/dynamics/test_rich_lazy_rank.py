"""Rank and structure of initial weights: matrices, connectome files, kernels, theory, training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.integrate import solve_ivp
from torch import nn

from peira.data.errors import DataError
from peira.dynamics.probes import empirical_ntk
from peira.dynamics.rich_lazy_rank import (
    compare,
    connectome,
    inits,
    linear,
    network,
    study,
    tasks,
    training,
    use,
    verdicts,
)
from peira.engine.runs import Run


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(size: int = 30, seed: int = 0) -> torch.Tensor:
    return inits.gaussian_init(size, generator=generator(seed))


# Initial weights


def test_truncation_keeps_the_leading_triplets_and_the_size_asked_for() -> None:
    weights = gaussian()
    u, s, v = (part.numpy() for part in torch.linalg.svd(weights.double()))
    expected = (u[:, :4] * s[:4]) @ v[:4]
    found = {
        rule: inits.low_rank_init(weights, 4, rule).double().numpy()
        for rule in ("fro", "spectral", "radius")
    }
    for rule, matrix in found.items():
        np.testing.assert_allclose(np.linalg.svd(matrix)[1][4:], 0, atol=1e-5)
        scale = matrix.ravel() @ expected.ravel() / (expected**2).sum()
        np.testing.assert_allclose(matrix, scale * expected, atol=1e-5, err_msg=rule)
    assert np.linalg.norm(found["fro"]) == pytest.approx(float(weights.norm()), rel=1e-5)
    assert np.linalg.norm(found["spectral"], 2) == pytest.approx(s[0], rel=1e-5)
    radius = np.abs(np.linalg.eigvals(weights.double().numpy())).max()
    assert np.abs(np.linalg.eigvals(found["radius"])).max() == pytest.approx(radius, rel=1e-4)
    full = inits.low_rank_init(weights, 30, "fro")
    torch.testing.assert_close(full, weights, atol=1e-5, rtol=1e-4)


def test_few_triplets_of_a_big_matrix_are_the_leading_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = gaussian(80)
    expected = inits.low_rank_init(weights, 3)
    monkeypatch.setattr(inits, "MANY_UNITS", 80)
    torch.testing.assert_close(inits.low_rank_init(weights, 3), expected, atol=1e-5, rtol=1e-4)


def test_gaussian_and_orthogonal_matrices_have_their_norms() -> None:
    norms = [float(inits.gaussian_init(100, 1.25, generator=generator(s)).norm()) for s in range(9)]
    assert np.mean(norms) == pytest.approx(1.25 * 10, rel=0.01)
    q = inits.orthogonal_init(20, 3.0, generator=generator())
    torch.testing.assert_close(q @ q.T, torch.eye(20) * 9 / 20)


@pytest.mark.parametrize(
    ("weights", "rank", "message"),
    [
        (torch.ones(3, 4), 1, "square"),
        (torch.zeros(3, 3), 1, "all zero"),
        (torch.tensor([[1.0, 2.0], [math.nan, 1.0]]), 1, "row 2, column 1: recurrent weights"),
        (torch.eye(3), 0, "rank; got 0; expected 1 to 3"),
        (torch.eye(3), 4, "rank; got 4; expected 1 to 3"),
        (torch.tensor([[0.0, 1.0], [0.0, 0.0]]), 1, "square|radius"),
    ],
)
def test_impossible_truncations_are_refused(weights: torch.Tensor, rank: int, message: str) -> None:
    match = "radius" if "radius" in message else "fro"
    with pytest.raises(DataError, match=message):
        inits.low_rank_init(weights, rank, match)


def test_aligned_weights_read_out_the_target() -> None:
    """a^T F is parallel to beta; with a truncated F it is the nearest that F can express."""
    f = torch.randn(5, 4, generator=generator(), dtype=torch.float64)
    beta = torch.randn(4, generator=generator(1), dtype=torch.float64)
    weights = inits.aligned_init(beta, 7, factor=f, norm=2.0, generator=generator(2))
    assert weights.shape == (7, 5)
    assert torch.linalg.matrix_rank(weights) == 1
    assert float(weights.norm()) == pytest.approx(2)
    seen = (weights @ f)[0]
    assert abs(float(torch.cosine_similarity(seen, beta, dim=0))) == pytest.approx(1)
    half = torch.diag(torch.tensor([3.0, 3.0, 0.0, 0.0], dtype=torch.float64))
    partly = inits.aligned_init(beta, 1, factor=half)[0]
    torch.testing.assert_close(partly[2:], torch.zeros(2, dtype=torch.float64))
    assert float(partly[0] / partly[1]) == pytest.approx(float(beta[0] / beta[1]))
    with pytest.raises(DataError, match="out of the factor's range"):
        inits.aligned_init(torch.tensor([0.0, 0.0, 1.0, 1.0]).double(), 1, factor=half)


def test_connectome_weights_follow_orientation_signs_and_norm() -> None:
    adjacency = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0], [3.0, 0.0, 0.0]])
    signs = (1, -1, 1)
    as_post = inits.connectome_init(adjacency, signs, gain=2.0, rows="post")
    as_pre = inits.connectome_init(adjacency.T, signs, gain=2.0, rows="pre")
    torch.testing.assert_close(as_post, as_pre)
    assert float(as_post.norm()) == pytest.approx(2 * math.sqrt(3))
    # Unit 2 sends the connection of weight 2, and is inhibitory.
    assert as_post[0, 1] < 0 < as_post[1, 2]
    assert float(as_post[0, 1] / as_post[2, 0]) == pytest.approx(-2 / 3)
    for bad in ((1, 1), (1, 0, 1)):
        with pytest.raises(DataError, match="3 times"):
            inits.connectome_init(adjacency, bad, rows="post")
    with pytest.raises(DataError, match="negative weight beside signs"):
        inits.connectome_init(-adjacency, signs, rows="post")


def test_cell_types_obey_dale_and_balance() -> None:
    weights = torch.stack(
        [inits.block_init(100, 12.0, generator=generator(seed)) for seed in range(40)]
    )
    assert weights.norm(dim=(1, 2)).numpy() == pytest.approx(12, rel=1e-5)
    assert (weights[:, :, :80] >= 0).all() and (weights[:, :, 80:] <= 0).all()
    assert not weights.diagonal(dim1=1, dim2=2).any()
    # Inhibition takes away the mean excitation of every type of target.
    excitation, inhibition = weights[..., :80].sum(2).mean(0), -weights[..., 80:].sum(2).mean(0)
    for part in (slice(0, 80), slice(80, 88), slice(88, 95), slice(95, 100)):
        ratio = float(inhibition[part].mean() / excitation[part].mean())
        assert ratio == pytest.approx(1, abs=0.1)


def test_chains_are_over_represented() -> None:
    """Expected number of chains a -> b -> c over that of a random graph: E q^2 = exp(spread^2)."""
    ratios = []
    for seed in range(20):
        there = inits.chain_init(150, 1.0, probability=0.1, spread=0.5, generator=generator(seed))
        there = (there != 0).double()
        density = there.mean()
        ratios.append(float((there @ there).mean() / (150 * density**2)))
    assert np.mean(ratios) == pytest.approx(math.exp(0.25), rel=0.08)


@pytest.mark.parametrize("kind", ["elements", "degrees"])
def test_shuffles_keep_the_norm_and_what_they_promise(kind: str) -> None:
    weights = inits.block_init(60, 5.0, generator=generator())
    shuffled = inits.shuffle_weights(weights, kind, generator=generator(1))
    assert not torch.equal(shuffled, weights)
    torch.testing.assert_close(shuffled.flatten().sort()[0], weights.flatten().sort()[0])
    if kind == "degrees":
        for axis in (0, 1):
            assert torch.equal((shuffled != 0).sum(axis), (weights != 0).sum(axis))
        # What a unit sends keeps its strengths, so its sign too; no unit connects to itself.
        torch.testing.assert_close(shuffled.sort(0)[0], weights.sort(0)[0])
        assert not shuffled.diagonal().any()
        moved = ((shuffled != 0) & (weights == 0)).sum() / (weights != 0).sum()
        assert moved > 0.4


# Connectome files

EDGES = [("a", "b", 2.0), ("b", "c", 1.0), ("c", "a", 4.0), ("a", "b", 0.5)]


def expected() -> torch.Tensor:
    matrix = torch.zeros(3, 3)
    matrix[1, 0], matrix[2, 1], matrix[0, 2] = 2.5, 1.0, 4.0
    return matrix


def write_files(folder: Path) -> dict[str, Path]:
    """The same connectome in every format."""
    lines = [f"{a},{b},{w}" for a, b, w in EDGES]
    files = {"edges": folder / "e.csv", "tabs": folder / "e.tsv", "json": folder / "c.json"}
    files["edges"].write_text("\n".join(["pre,post,synapses", *lines]) + "\n")
    files["tabs"].write_text("\n".join(["target\tsource\tweight"] + [
        f"{b}\t{a}\t{w}" for a, b, w in EDGES]) + "\n")  # fmt: skip
    nodes = [{"id": name, "sign": sign} for name, sign in zip("abc", (1, 1, -1), strict=True)]
    edges = [{"source": a, "target": b, "weight": w} for a, b, w in EDGES]
    files["json"].write_text(json.dumps({"nodes": nodes, "links": edges}))
    graph = nx.DiGraph()
    for node in nodes:
        graph.add_node(node["id"], sign=node["sign"])
    for a, b, w in EDGES:
        old = graph.get_edge_data(a, b, {}).get("weight", 0.0)
        graph.add_edge(a, b, weight=old + w)
    files["graphml"] = folder / "c.graphml"
    nx.write_graphml(graph, files["graphml"])
    return files


def test_every_format_gives_the_same_connectome(tmp_path: Path) -> None:
    for kind, path in write_files(tmp_path).items():
        found = connectome.read_connectome(path)
        torch.testing.assert_close(found.weights, expected(), msg=kind)
        assert found.names == ("a", "b", "c")
        assert found.signs == ((1, 1, -1) if kind in ("json", "graphml") else None)


@pytest.mark.parametrize("header", [0, 1, 2])
def test_matrices_need_their_orientation(tmp_path: Path, header: int) -> None:
    """Without names, with a row of names, with a row and a column of names."""
    rows = [[f"{value:g}" for value in row] for row in expected().tolist()]
    if header == 2:
        rows = [[name, *row] for name, row in zip("abc", rows, strict=True)]
    if header:
        rows = [["", *"abc"] if header == 2 else list("abc"), *rows]
    path = tmp_path / "m.csv"
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    post, pre = (connectome.read_connectome(path, rows=rows) for rows in ("post", "pre"))
    torch.testing.assert_close(post.weights, expected())
    torch.testing.assert_close(pre.weights, expected().T)
    assert post.names == (("a", "b", "c") if header else ("1", "2", "3"))
    with pytest.raises(DataError, match="rows 'post'"):
        connectome.read_connectome(path)
    np.save(tmp_path / "m.npy", expected().numpy())
    found = connectome.read_connectome(tmp_path / "m.npy", rows="pre")
    torch.testing.assert_close(found.weights, expected().T)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "pre,post,weight\na,b,1\nb,c,x\n", "row 3, column 'weight': wrong value; got"),
        ("a.csv", "pre,post,weight\na,b,1\nb,c,\n", "row 3, column 'weight': no weight"),
        ("a.csv", "pre,post,weight\na,b,0\n", "all weights are zero"),
        ("m.csv", "0,1\n1,0,2\n", "row 2: not square; got '3 numbers'; expected 2"),
        ("m.csv", "0,1\n1,nan\n", "row 2, column 2: wrong value; got 'nan'"),
        ("m.csv", "a,b\n1,z\n0,1\n", "row 2, column 'b': wrong value; got 'z'"),
        ("c.json", '{"nodes": ["a"], "edges": [{"source": "a", "target": "z"}]}', "has an end"),
        ("c.json", '{"edges": [{"source": "a"}]}', "edge 1 lacks 'post'"),
        ("c.json", '{"edges": [{"source": "a", "target": "b", "weight": "w"}]}', "weight of edge"),
        ("c.json", '{"nodes": []}', "no list of edges"),
        ("c.json", "[", "not valid JSON"),
        ("c.graphml", "<graphml>", "not a readable GraphML file"),
        ("c.gml", "", "unknown kind of file; got '.gml'"),
        ("m.npy", "no array", "not a readable .npy"),
    ],
)  # fmt: skip
def test_broken_connectomes_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    rows = "post" if name.startswith("m") else None
    with pytest.raises(DataError, match=message):
        connectome.read_connectome(path, rows=rows)


def test_orientation_and_signs_are_checked(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    with pytest.raises(DataError, match="direction of their own"):
        connectome.read_connectome(files["edges"], rows="post")
    graph = nx.Graph([("a", "b")])
    nx.write_graphml(graph, tmp_path / "u.graphml")
    with pytest.raises(DataError, match="undirected"):
        connectome.read_connectome(tmp_path / "u.graphml")
    signs = tmp_path / "signs.csv"
    signs.write_text("neuron,sign\na,+1\nb,-1\nc,1\n")
    assert connectome.read_connectome(files["edges"], signs=signs).signs == (1, -1, 1)
    for rows, message in (
        ("a,1\nb,1\n", "1 neurons without a sign; got 'c'"),
        ("a,1\nb,0\nc,1\n", r"row 3: sign; got '0'; expected \+1 or -1"),
        ("a,1\nb,1\nd,1\n", "row 4, column 'neuron': a neuron that the connectome lacks"),
    ):
        signs.write_text("neuron,sign\n" + rows)
        with pytest.raises(DataError, match=message):
            connectome.read_connectome(files["edges"], signs=signs)


# The network and its kernel


def rnn(hidden: int = 6, *, leak: float = 0.7, read: str = "every", seed: int = 0) -> nn.Module:
    return network.RateRNN(
        3, hidden, 2, leak=leak, read=read, generator=generator(seed)  # type: ignore[arg-type]
    ).double()  # fmt: skip


def test_the_network_is_the_published_recursion() -> None:
    net, x = rnn(), torch.randn(4, 5, 3, generator=generator(1), dtype=torch.float64)
    w_in, w, w_out = (p.detach().numpy() for p in net.parameters())
    h, outputs = np.zeros((4, 6)), []
    for t in range(5):
        h = np.maximum(0.3 * h + 0.7 * (x[:, t].numpy() @ w_in.T + h @ w.T), 0)
        outputs.append(h @ w_out.T)
    np.testing.assert_allclose(net(x).detach().numpy(), np.stack(outputs, 1), atol=1e-12)
    last = rnn(read="last")
    np.testing.assert_allclose(last(x).detach().numpy(), outputs[-1], atol=1e-12)


@pytest.mark.parametrize("read", ["every", "last"])
def test_the_kernel_is_that_of_one_gradient_for_each_output(read: str) -> None:
    """The official loop: one call of autograd.grad for every trial, step and class."""
    net, x = rnn(read=read), torch.randn(3, 4, 3, generator=generator(1), dtype=torch.float64)
    rows = []
    for trial in range(3):
        for output in net(x)[trial].flatten():
            (g,) = torch.autograd.grad(output, net.recurrent.weight, retain_graph=True)
            rows.append(g.flatten())
    jacobian = torch.stack(rows)
    torch.testing.assert_close(network.output_kernel(net, x), jacobian @ jacobian.T)


def test_laziness_by_its_definitions() -> None:
    net, other = rnn(), rnn(seed=5)
    x = torch.randn(7, 4, 3, generator=generator(1), dtype=torch.float64)
    before, after = net.state_dict(), other.state_dict()
    kept = {name: value.clone() for name, value in before.items()}
    found = network.recurrent_laziness(net, before, after, x, kernel_inputs=3)
    k0, k = (network.output_kernel(m, x[:3]) for m in (net, other))
    assert found.kernel_alignment == pytest.approx(float((k0 * k).sum() / k0.norm() / k.norm()))
    change = kept["recurrent.weight"] - after["recurrent.weight"]
    assert found.weight_change == pytest.approx(float(change.norm()))
    assert found.layers.keys() == kept.keys()

    def last_activity(model: nn.Module) -> np.ndarray:
        h = torch.zeros(7, 6, dtype=torch.float64)
        for t in range(4):
            h = torch.relu(0.3 * h + 0.7 * (model.inputs(x[:, t]) + model.recurrent(h)))
        return h.detach().numpy()

    h0, h = last_activity(net), last_activity(other)
    r0, r = h0 @ h0.T, h @ h.T
    expected = (r0 * r).sum() / np.linalg.norm(r0) / np.linalg.norm(r)
    assert found.representation_alignment == pytest.approx(expected)
    assert found.sign_similarity == pytest.approx((np.sign(h0) == np.sign(h)).mean())
    assert all(torch.equal(net.state_dict()[name], value) for name, value in kept.items())
    with pytest.raises(DataError, match="kernel_inputs; got 32; expected 1 to 7"):
        network.recurrent_laziness(net, before, after, x)


def test_any_recurrent_module_is_measured() -> None:
    """One with biases whose recurrent matrix is a bare parameter."""

    class Tanh(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drive = nn.Linear(3, 5)
            self.W = nn.Parameter(torch.randn(5, 5) / 2)
            self.readout = nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h, hidden = torch.zeros(len(x), 5), []
            for drive in self.drive(x).unbind(1):
                h = torch.tanh(drive + h @ self.W.T)
                hidden.append(h)
            return self.readout(torch.stack(hidden, 1))

    torch.manual_seed(0)
    net, other, x = Tanh(), Tanh(), torch.randn(4, 6, 3)
    states = net.state_dict(), other.state_dict()
    found = network.recurrent_laziness(net, *states, x, recurrent="W", kernel_inputs=4)
    full = [
        empirical_ntk(m, x, params=["W"], method="jacobian").permute(0, 2, 1, 3)
        for m in (net, other)
    ]
    k0, k = (kernel.reshape(48, 48) for kernel in full)
    expected = float((k0 * k).sum() / k0.norm() / k.norm())
    assert found.kernel_alignment == pytest.approx(expected, rel=1e-4)
    with pytest.raises(DataError, match=r"rnn\.V"):
        network.recurrent_laziness(net, *states, x, recurrent="rnn.V", kernel_inputs=4)
    with pytest.raises(DataError, match="weights of another model"):
        network.recurrent_laziness(net, states[0], rnn().state_dict(), x,
                                   recurrent="W", kernel_inputs=4)  # fmt: skip


def test_a_kernel_beyond_memory_is_refused_with_its_size() -> None:
    net = network.RateRNN(1, 4, 100)
    with pytest.raises(DataError, match=r"100,000 outputs needs 74.5 GiB.*at most 231 inputs"):
        network.output_kernel(net, torch.ones(1000, 1, 1))


# The linear network


def isotropic(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    target = rng.normal(size=(n, d))
    return target / np.linalg.norm(target, axis=1, keepdims=True)


def test_the_closed_forms_have_the_numbers_of_the_specification() -> None:
    forms = linear.aligned_form, linear.isotropic_form, linear.orthogonal_form
    assert [form(1.5, 1.0, 10) for form in forms] == pytest.approx([0.935, 0.976, 0.684], abs=5e-4)


@pytest.mark.parametrize("d", [4, 10])
@pytest.mark.parametrize("s", [0.7, 1.5])
def test_simulated_flows_meet_the_closed_forms(d: int, s: float) -> None:
    rng = np.random.default_rng(0)
    target, n = isotropic(5, d, rng), 5
    flat = np.broadcast_to(s / math.sqrt(d) * np.eye(d), (n, d, d))
    aligned = s * target[:, None]
    other = rng.normal(size=(n, d))
    other -= target * (other * target).sum(1, keepdims=True)
    against = np.zeros((n, d, d))
    against[:, 0] = s * other / np.linalg.norm(other, axis=1, keepdims=True)
    for first, form, second in (
        (flat, linear.isotropic_form, None),
        (aligned, linear.aligned_form, None),
        (against, linear.orthogonal_form, 1e-8 * rng.normal(size=(n, d))),
    ):
        after = linear.linear_flow(first, target, second=second)
        start = linear.linear_kernel(first, np.zeros(first.shape[:2]))
        found = linear.alignments(start, linear.linear_kernel(*after))
        assert found == pytest.approx(form(s, 1.0, d), abs=1e-4)


def test_the_flow_is_that_of_an_independent_solver() -> None:
    """SciPy's LSODA on the loss's gradient, with anisotropic inputs."""
    rng = np.random.default_rng(1)
    h, d, f = 3, 4, np.array([4.0, 4.0, 1.0, 1.0])
    first, target = rng.normal(size=(1, h, d)), isotropic(1, d, rng)

    def rate(_: float, state: np.ndarray) -> np.ndarray:
        w, matrix = state[:h], state[h:].reshape(h, d)
        error = target[0] - f * (matrix.T @ w)
        return np.concatenate([matrix @ (f * error), np.outer(w, f * error).ravel()])

    start = np.concatenate([np.zeros(h), first[0].ravel()])
    end = solve_ivp(rate, (0, 400), start, method="LSODA", rtol=1e-10, atol=1e-12).y[:, -1]
    matrix, w = linear.linear_flow(first, target, factor=f)
    np.testing.assert_allclose(w[0], end[:h], atol=2e-5)
    np.testing.assert_allclose(matrix[0], end[h:].reshape(h, d), atol=2e-5)
    np.testing.assert_allclose(f * (matrix[0].T @ w[0]), target[0], atol=2e-6)
    # What gradient flow conserves: W W^T - w w^T.
    before, after = first[0] @ first[0].T, matrix[0] @ matrix[0].T - np.outer(w[0], w[0])
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_the_linear_kernel_is_that_of_the_network() -> None:
    rng = np.random.default_rng(2)
    first, second, f = rng.normal(size=(1, 3, 4)), rng.normal(size=(1, 3)), np.arange(1.0, 5.0)
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.from_numpy(first[0]))
        net[1].weight.copy_(torch.from_numpy(second))
    ntk = empirical_ntk(net, torch.from_numpy(np.diag(f)), mode="trace")
    np.testing.assert_allclose(linear.linear_kernel(first, second, f)[0], ntk.numpy())


def test_an_orthogonal_start_at_rest_is_a_saddle() -> None:
    first = np.array([[[1.0, 0.0]]])
    with pytest.raises(DataError, match="1 of 1 flows do not arrive"):
        linear.linear_flow(first, np.array([[0.0, 1.0]]))
    with pytest.raises(DataError, match="targets"):
        linear.linear_flow(first, np.ones((1, 3)))


# Tasks


def test_two_alternatives_have_the_documented_statistics() -> None:
    x, y = tasks.two_alternatives(20_000, generator())
    assert x.shape == (20_000, 8, 3) and y.shape == (20_000, 8)
    assert not y[:, :7].any() and set(y[:, 7].tolist()) == {1, 2}
    assert (x[:, :7, 0] == 1).all() and not x[:, 7].any()
    evidence = (x[:, :7, 1] - x[:, :7, 2]).mean(1)
    left = y[:, 7] == 1
    assert float(evidence[left].mean()) == pytest.approx(np.mean(tasks.COHERENCES) / 100, abs=5e-3)
    assert float(evidence[~left].mean()) == pytest.approx(
        -np.mean(tasks.COHERENCES) / 100, abs=5e-3
    )
    within = x[:, :7, 1] - x[:, :7, 1].mean(1, keepdim=True)
    assert float(within.square().sum(1).mean() / 6) == pytest.approx(0.01, rel=0.02)


def test_delayed_match_compares_first_and_last_stimulus() -> None:
    x, y = tasks.delayed_match(5000, generator())
    sample, test = x[:, 0, 1:].argmax(1), x[:, 6, 1:].argmax(1)
    assert torch.equal(y[:, 7] == 1, sample == test)
    assert not x[:, 1:6, 1:].any() and not x[:, 7].any()
    assert float(x[:, 0, 1:].std(0).mean()) == pytest.approx(math.sqrt(0.26), abs=0.01)


def test_context_names_the_stimulus_that_counts() -> None:
    x, y = tasks.context_decision(20_000, generator())
    context = x[:, 7, 5:].argmax(1)
    assert torch.equal(x[:, 7, 5:].sum(1), torch.ones(20_000))
    evidence = torch.stack([x[:, :2, 1] - x[:, :2, 2], x[:, :2, 3] - x[:, :2, 4]], 2).mean(1)
    right = torch.where(y[:, 7] == 1, 1.0, -1.0)[:, None] * evidence
    rows = torch.arange(20_000)
    mean = np.mean(tasks.CONTEXT_COHERENCES) / 100
    assert float(right[rows, context].mean()) == pytest.approx(mean, abs=5e-3)
    assert float(right[rows, 1 - context].mean()) == pytest.approx(0, abs=5e-3)
    assert float(x[:, :2, 0].std()) == pytest.approx(0.1, rel=0.02)
    assert not x[:, 7, :5].any()


def test_digits_are_read_row_by_row_and_split() -> None:
    task = tasks.make_task("digits", generator())
    assert task.images is not None and task.held_out is not None
    assert [len(part[0]) for part in (task.images, task.held_out)] == [1497, 300]
    pixels, labels = tasks.digit_rows()
    assert pixels.shape == (1797, 8, 8) and float(pixels.max()) == 1
    both = torch.cat([task.images[0], task.held_out[0]]).flatten(1)
    assert torch.equal(both.sum(1).sort()[0], pixels.flatten(1).sum(1).sort()[0])
    # The first digit is a zero: its second row starts with two empty pixels and a full one.
    assert labels[0] == 0 and pixels[0, 1, :4].tolist() == [0, 0, 13 / 16, 15 / 16]
    with pytest.raises(DataError, match="task; got '3AF'"):
        tasks.make_task("3AF", generator())  # type: ignore[arg-type]


def test_sequential_mnist_comes_from_the_test_file(real_data: Path) -> None:
    task = tasks.make_task("sMNIST", generator())
    assert task.images is not None and task.held_out is not None
    assert task.images[0].shape == (9000, 28, 28) and task.held_out[0].shape == (1000, 28, 28)
    counts = torch.bincount(torch.cat([task.images[1], task.held_out[1]]))
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# Training


def plain_training(net: nn.Module, problem: tasks.Problem, steps: int) -> nn.Module:
    """One network with torch's own SGD."""
    optimizer = torch.optim.SGD(net.parameters(), lr=3e-3, momentum=0.9)
    draws = tasks.stream(3, "training")
    for _ in range(steps):
        x, y = problem.task.batch(32, draws)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x).flatten(0, 1), y.flatten()).backward()
        optimizer.step()
    return net


def test_networks_in_a_cohort_train_as_if_alone_and_stop_at_the_loss() -> None:
    problem = tasks.Problem.make("2AF", 32, 3)
    nets = [problem.network(16, 3) for _ in range(3)]
    for net, scale in zip(nets, (0.1, 1.0, 3.0), strict=True):
        net.set_recurrent(scale * gaussian(16))
    target = 0.15
    recipe = training.Recipe(target_loss=target, iterations=400)
    endings = training.train_together(
        nets, [3, 3, 3], {3: problem}, {3: tasks.stream(3, "training")}, recipe
    )
    assert len({ending.step for ending in endings}) > 1
    for net, ending in zip(nets, endings, strict=True):
        assert ending.reached and ending.step % 20 == 0 and ending.loss <= target
        alone = plain_training(net, problem, ending.step)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(ending.state[name], value, rtol=1e-4, atol=1e-6)
        x, y = problem.validation
        loss = nn.functional.cross_entropy(alone(x).flatten(0, 1), y.flatten())
        assert float(loss.detach()) == pytest.approx(ending.loss, rel=1e-4)


def test_divergence_is_noticed_and_hurts_nobody_else() -> None:
    problem = tasks.Problem.make("2AF", 32, 0)
    nets = [problem.network(8, 0) for _ in range(2)]
    nets[1].set_recurrent(1e8 * gaussian(8))
    recipe = training.Recipe(target_loss=None, iterations=40)
    fine, broken = training.train_together(
        nets, [0, 0], {0: problem}, {0: tasks.stream(0, "training")}, recipe
    )
    assert broken.step == 20 and not math.isfinite(broken.loss) and not broken.reached
    assert fine.step == 40 and fine.loss < 1.5


def test_own_weights_are_compared_with_their_controls() -> None:
    weights = inits.block_init(20, 4.0, generator=generator())
    controls = compare.with_controls(weights)
    assert list(controls) == ["given", "entries permuted", "Gaussian", "edges swapped"]
    assert len({round(float(matrix.norm()), 4) for matrix in controls.values()}) == 1
    assert "edges swapped" not in compare.with_controls(gaussian())
    recipe = training.Recipe(target_loss=0.6, iterations=100)
    table = compare.compare_inits(controls, seeds=2, recipe=recipe, kernel_inputs=4)
    assert table.groupby("init").size().to_dict() == dict.fromkeys(controls, 2)
    assert table["reached"].all() and (table["loss"] <= 0.6).all()
    assert table["kernel_alignment"].between(0, 1).all()
    with pytest.raises(DataError, match="one size"):
        compare.compare_inits({"a": torch.eye(3), "b": torch.eye(4)})


# The study


def test_all_conditions_of_a_seed_share_everything_but_the_recurrent_weights() -> None:
    cells = [study.Cell(rank=1), study.Cell(gain=0.9), study.Cell(init="block")]
    bases = [study.recurrent_weights(cell, 4) for cell in cells]
    same = study.recurrent_weights(study.Cell(), 4)
    torch.testing.assert_close(bases[1] / 0.9, same / 1.25)
    assert float(bases[0].norm()) == pytest.approx(float(same.norm()), rel=1e-5)
    assert float(bases[2].norm()) == pytest.approx(float(same.norm()), rel=1e-5)
    u, _, v = torch.linalg.svd(same)
    cosine = float((u[:, 0] @ bases[0] @ v[0]) / same.norm())
    assert cosine == pytest.approx(1, abs=1e-4)
    batches = {study.Study.batch(None, cell) for cell in cells}  # type: ignore[arg-type]
    assert len(batches) == 1


def test_a_cell_measured_alone_and_in_company_gives_the_same_numbers() -> None:
    tiny = {"hidden": 20, "iterations": 60, "target_loss": 0.6, "batch_size": 8, "kernel_inputs": 3}
    cells = [study.Cell(rank=1, **tiny), study.Cell(**tiny), study.Cell(init="chain", **tiny)]
    studied = study.Study(None)  # type: ignore[arg-type]
    seeds = (0, 0, 1)
    together = studied.measure_many(cells, [Run(seed) for seed in seeds])
    for cell, seed, measured in zip(cells, seeds, together, strict=True):
        assert studied.measure(cell, Run(seed)) == measured


@pytest.mark.parametrize(("features", "falls"), [("task", False), ("inputs", True)])
def test_partial_alignment_depends_on_the_condition(features: str, falls: bool) -> None:
    """With F in the task, its strong half is nearly all of the target; with F in the inputs the
    aligned network's kernel is swamped by |w|^2 F^T F."""
    base = {"task": "linear", "hidden": 6, "target_loss": None, "features": features}
    init = "aligned" if falls else "partly-aligned"
    found = [
        study.measure_linear(
            study.Cell(init=init, condition=condition, **base), np.random.default_rng(0)
        )["kernel_alignment"]
        for condition in (1.0, 8.0)
    ]
    assert (found[1] < found[0] - 0.1) if falls else (found[1] > found[0] + 0.1)


def rows(**fields: object) -> pd.DataFrame:
    cell = study.Cell(**{k: v for k, v in fields.items() if k in study.Cell.model_fields})  # type: ignore[arg-type]
    metrics = {k: v for k, v in fields.items() if k not in study.Cell.model_fields}
    return pd.DataFrame([{**cell.model_dump(), "reached": 1.0, **metrics}])


def test_concordance_counts_seeds_where_rank_and_alignment_agree() -> None:
    parts = []
    for seed, (rank, alignment) in enumerate([(5, 0.3), (5, 0.9), (20, 0.9)]):
        parts += [
            rows(init="block", seed=seed, participation_rank=rank, kernel_alignment=alignment),
            rows(init="block", shuffle="elements", seed=seed, participation_rank=10,
                 kernel_alignment=0.5),
        ]  # fmt: skip
    table = verdicts.matched(pd.concat(parts))
    assert verdicts.concordant(table, "elements") == [True, False, True]
    assert verdicts.concordant(table, "degrees") == []


def test_networks_that_never_got_there_are_not_compared() -> None:
    table = pd.concat([rows(seed=0), rows(seed=1).assign(reached=0.0), rows(task="linear", seed=0)])
    assert verdicts.matched(table)["seed"].tolist() == [0]


# Commands


def test_commands_write_and_describe_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "w.safetensors"
    use.init(out, size=24, rank=3)
    assert "written to" in capsys.readouterr().out
    use.ranks(out)
    assert "participation_rank" in capsys.readouterr().out
    assert torch.linalg.matrix_rank(use._read(out, None, None, None, 0.0), rtol=1e-4) == 3
    files = write_files(tmp_path)
    use.init(tmp_path / "c.npy", matrix=files["json"], gain=1.0)
    written = np.load(tmp_path / "c.npy")
    assert np.linalg.norm(written) == pytest.approx(math.sqrt(3), rel=1e-5)
    assert written[0, 2] < 0 < written[1, 0]
    kept = use._read(files["json"], None, None, None, 0.0)
    assert kept[0, 2] == -4
    with pytest.raises(DataError, match=r"expected \.npy or \.safetensors"):
        use.init(tmp_path / "w.txt", size=4)


def test_the_laziness_command_reads_two_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nets = [network.RateRNN(3, 8, 2, generator=generator(seed)) for seed in (0, 1)]
    paths = [tmp_path / f"{when}.safetensors" for when in ("before", "after")]
    keys = {"inputs.weight": "wi", "recurrent.weight": "wr", "readout.weight": "wo"}
    for net, path in zip(nets, paths, strict=True):
        save_file({keys[name]: value for name, value in net.state_dict().items()}, path)
    probe = torch.randn(10, 5, 3, generator=generator(2))
    np.save(tmp_path / "x.npy", probe.numpy())
    use.laziness(*paths, tmp_path / "x.npy", names="wi,wr,wo")
    shown = capsys.readouterr().out
    found = network.recurrent_laziness(
        nets[0], nets[0].state_dict(), nets[1].state_dict(), probe, kernel_inputs=10
    )
    assert f"{found.kernel_alignment:.4f}" in shown
    assert "change of wr" in shown
    with pytest.raises(DataError, match=r"no tensor 'inputs\.weight'"):
        use.laziness(*paths, tmp_path / "x.npy")
    np.save(tmp_path / "y.npy", np.ones((4, 5, 2)))
    with pytest.raises(DataError, match=r"got \(4, 5, 2\); expected shape \(inputs, time, 3\)"):
        use.laziness(*paths, tmp_path / "y.npy", names="wi,wr,wo")


def test_the_compare_command_writes_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.csv"
    use.compare(
        write_files(tmp_path)["edges"], out, target_loss=0.8, iterations=40, seeds=1, gain=1.0
    )
    assert "kernel" in capsys.readouterr().out
    table = pd.read_csv(out)
    assert {"given", "Gaussian"} <= set(table["init"])
    with pytest.raises(DataError, match="--rows"):
        use.compare(tmp_path / "e.csv", rows="columns")
