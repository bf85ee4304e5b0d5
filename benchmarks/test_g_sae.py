"""Sparse decoding, selection and a training step, against dense code and published libraries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peira.explain.g_sae.dictionary import GSAE, SparseCode
from peira.explain.g_sae.fitting import SAERecipe

torch.set_num_threads(1)
Benchmark = Callable[..., None]
D, K, ROWS = 256, 32, 512
H = 32 * D


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X, G = torch.randn(ROWS, D, generator=draws()), torch.randn(ROWS, D, generator=draws(1))


def dictionary(mode: str = "topk") -> GSAE:
    made = GSAE(H, K, mode=mode)  # type: ignore[arg-type]
    made.build(D, draws(2))
    return made


def code_of(made: GSAE) -> SparseCode:
    with torch.no_grad():
        return made.encode(X)


def quietly(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return call()

    return run


@pytest.mark.benchmark(group="g-sae decode, h = 32 d, k = 32")
def test_decode_peira(benchmark: Benchmark) -> None:
    made = dictionary()
    code = code_of(made)
    benchmark(quietly(lambda: made.decode(code)))


@pytest.mark.benchmark(group="g-sae decode, h = 32 d, k = 32")
def test_decode_dense(benchmark: Benchmark) -> None:
    made = dictionary()
    dense = code_of(made).dense(H)
    benchmark(quietly(lambda: torch.addmm(made.b_pre, dense, made.decoder)))


@pytest.mark.benchmark(group="g-sae decode, h = 32 d, k = 32")
def test_decode_gathered_rows(benchmark: Benchmark) -> None:
    made = dictionary()
    values, units = code_of(made)
    benchmark(quietly(lambda: (values[:, None] @ made.decoder[units])[:, 0] + made.b_pre))


@pytest.mark.benchmark(group="g-sae decode, h = 32 d, k = 32")
def test_decode_torch_sparse(benchmark: Benchmark) -> None:
    made = dictionary()
    dense = code_of(made).dense(H).to_sparse_csr()
    benchmark(quietly(lambda: dense @ made.decoder + made.b_pre))


@pytest.mark.benchmark(group="g-sae top-k of 8,192")
def test_topk_peira(benchmark: Benchmark) -> None:
    z = dictionary().activations(X).detach()
    benchmark(lambda: z.topk(K, sorted=False).indices)


@pytest.mark.benchmark(group="g-sae top-k of 8,192")
def test_topk_sort(benchmark: Benchmark) -> None:
    z = dictionary().activations(X).detach()
    benchmark(lambda: z.argsort(dim=1, descending=True)[:, :K])


@pytest.mark.benchmark(group="g-sae top-k of 8,192")
def test_topk_kth_value(benchmark: Benchmark) -> None:
    z = dictionary().activations(X).detach()
    benchmark(lambda: z >= z.kthvalue(H - K + 1, dim=1, keepdim=True).values)


@pytest.mark.benchmark(group="g-sae reconstruction")
def test_reconstruct_peira(benchmark: Benchmark) -> None:
    made = dictionary()
    benchmark(quietly(lambda: made(X)))


@pytest.mark.benchmark(group="g-sae reconstruction")
def test_reconstruct_with_gradient(benchmark: Benchmark) -> None:
    made = dictionary("additive")
    benchmark(quietly(lambda: made(X, G)))


@pytest.mark.benchmark(group="g-sae reconstruction")
def test_reconstruct_dictionary_learning(benchmark: Benchmark) -> None:
    peer = pytest.importorskip("dictionary_learning.trainers.top_k")
    theirs = peer.AutoEncoderTopK(D, H, K)
    benchmark(quietly(lambda: theirs(X)))


@pytest.mark.benchmark(group="g-sae reconstruction")
def test_reconstruct_overcomplete(benchmark: Benchmark) -> None:
    peer = pytest.importorskip("overcomplete.sae")
    theirs = peer.TopKSAE(D, H, top_k=K).eval()
    benchmark(quietly(lambda: theirs.decode(theirs.encode(X)[1])))


@pytest.mark.benchmark(group="g-sae reconstruction")
def test_reconstruct_saelens(benchmark: Benchmark) -> None:
    peer = pytest.importorskip("sae_lens")
    theirs = peer.TopKSAE(peer.TopKSAEConfig(d_in=D, d_sae=H, k=K))
    benchmark(quietly(lambda: theirs(X)))


def step_of(parameters: list[nn.Parameter], loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step() -> None:
        found = loss()
        optimizer.zero_grad()
        found.backward()
        optimizer.step()

    return step


@pytest.mark.benchmark(group="g-sae training step of TopK")
def test_step_peira(benchmark: Benchmark) -> None:
    made, recipe = dictionary(), SAERecipe(dead_after=10**9)
    benchmark(step_of(list(made.parameters()), lambda: made.training_loss(X, None, recipe)))


@pytest.mark.benchmark(group="g-sae training step of TopK")
def test_step_dense(benchmark: Benchmark) -> None:
    made = dictionary()

    def loss() -> Tensor:
        z = (F.linear(X - made.b_pre, made.encoder, made.b_enc)).relu()
        best = z.topk(K, sorted=False)
        kept = torch.zeros_like(z).scatter(1, best.indices, best.values)
        return (X - kept @ made.decoder - made.b_pre).square().sum(1).mean()

    benchmark(step_of(list(made.parameters()), loss))


@pytest.mark.benchmark(group="g-sae training step of TopK")
def test_step_dictionary_learning(benchmark: Benchmark) -> None:
    peer = pytest.importorskip("dictionary_learning.trainers.top_k")
    theirs = peer.AutoEncoderTopK(D, H, K)
    benchmark(
        step_of(list(theirs.parameters()), lambda: (X - theirs(X)).square().sum(1).mean())
    )  # fmt: skip


@pytest.mark.benchmark(group="g-sae training step of TopK")
def test_step_overcomplete(benchmark: Benchmark) -> None:
    peer = pytest.importorskip("overcomplete.sae")
    theirs = peer.TopKSAE(D, H, top_k=K)
    benchmark(
        step_of(list(theirs.parameters()), lambda: (X - theirs(X)[2]).square().sum(1).mean())
    )  # fmt: skip
