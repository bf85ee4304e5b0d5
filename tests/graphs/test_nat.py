"""NAT: caches against plain dictionaries, equations, protocols, baselines, the estimator."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from peira.data import DataError
from peira.data.temporal import TemporalEdges, read_temporal
from peira.graphs.nat.attention import TGAT, EventAttention, MemoryNetwork
from peira.graphs.nat.baselines import CommonNeighbours, EdgeBank
from peira.graphs.nat.generate import closure_task, triadic_stream
from peira.graphs.nat.history import History, Recent
from peira.graphs.nat.joint import Entries, code_counts, join
from peira.graphs.nat.method import NAT, compare
from peira.graphs.nat.mixer import GraphMixer
from peira.graphs.nat.model import NATNetwork
from peira.graphs.nat.ncache import Offers, Table, coin, hash_slot, write
from peira.graphs.nat.pooling import DroppedSum, JointPool
from peira.graphs.nat.protocol import (
    Decoys,
    Negatives,
    Training,
    average_precision,
    batches,
    evaluate,
    inductive,
    replay,
    roc_auc,
    transductive,
)
from peira.graphs.nat.pyg import GeometricTGN
from peira.graphs.nat.walks import WalkNetwork, _name


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def random_stream(seed=0, nodes=12, events=90, features=3):
    rng = np.random.default_rng(seed)
    return TemporalEdges(
        rng.integers(nodes, size=events),
        rng.integers(nodes, size=events),
        np.sort(rng.integers(0, 40, events)).astype(float),
        np.arange(nodes),
        rng.normal(size=(events, features)).astype(np.float32),
        rng.normal(size=(nodes, 2)).astype(np.float32),
    )


def network(edges, **settings):
    padded = [np.vstack([np.zeros((1, f.shape[1]), np.float32), f]) for f in (edges.msg, edges.x)]
    return NATNetwork(edges.num_nodes, *map(torch.from_numpy, padded), **settings)


class DictionaryNAT:
    """The equations with plain dictionaries, one entry at a time: slow, and easy to check."""

    def __init__(self, net):
        self.net, self.events = net, 0
        width = net.self_update.hidden_size
        self.self_rep = {u: torch.zeros(width) for u in range(net.num_nodes + 1)}
        self.last = dict.fromkeys(range(net.num_nodes + 1), (0, 0, 0.0))
        # Hop, then node, then slot: an entry of key, edge, time and value.
        self.tables = [{u: {} for u in range(net.num_nodes + 1)} for _ in net.slots]

    def message(self, linear, partner, edge, time):
        code = self.net.time_code(torch.tensor([time / self.net.time_unit], dtype=torch.float64))
        return linear(torch.cat([self.self_rep[partner], self.net.edge_x[edge], code[0]])[None])

    def read_self(self, u):
        message = self.message(self.net.self_message, *self.last[u])
        return self.net.self_update(message, self.self_rep[u][None])[0]

    def read_value(self, entry):
        key, edge, time, value = entry
        message = self.message(self.net.value_message, key, edge, time)
        return self.net.value_update(message, value[None])[0]

    def neighbourhood(self, u):
        own = self.tables[0][u].get(0)
        zero = torch.zeros(self.net.value_dim)
        yield u, 0, zero if own is None else self.read_value(own)
        for hop in range(1, len(self.tables)):
            for entry in self.tables[hop][u].values():
                yield entry[0], hop, self.read_value(entry)

    def logit(self, u, v):
        members = {}
        for side, node in enumerate((u, v)):
            for key, hop, value in self.neighbourhood(node):
                code, total, times = members.get(key, (0, torch.zeros(self.net.value_dim), 0))
                members[key] = code + (1 << (hop + 3 * side)), total + value, times + 1
        pool = self.net.pool
        rows = torch.stack(
            [
                torch.cat([self.net.node_x[key] * n, value, self.net.position.weight[code]])
                for key, (code, value, n) in members.items()
            ]
        )
        h = pool.project(rows).view(len(rows), pool.heads, -1)
        if pool.pool == "attention":
            score = torch.nn.functional.leaky_relu((h * pool.score).sum(-1), 0.2)
            h = h * score.softmax(0)[..., None]
        pooled = h.sum(0).mean(0) + pool.bias
        return self.net.score(torch.cat([pooled, self.read_self(u), self.read_self(v)]))[0]

    def slot(self, key, hop):
        return int(hash_slot(torch.tensor(key), self.net.slots[hop], self.net.hash, self.net.seed))

    def write(self, batch):
        now = {u: self.read_self(u) for u in {*batch.src.tolist(), *batch.dst.tolist()}}
        before = [{u: dict(table) for u, table in tables.items()} for tables in self.tables]
        for u, v, t, edge in zip(*(part.tolist() for part in batch), strict=True):
            offers = []
            for a, b in ((u, v), (v, u)):
                own = before[0][a].get(0)
                zero = torch.zeros(self.net.value_dim)
                offers.append((0, a, (a, edge, t, zero if own is None else self.read_value(own))))
                held = before[1][a].get(self.slot(b, 1))
                known = held is not None and held[0] == b
                offers.append((1, a, (b, edge, t, self.read_value(held) if known else zero)))
                entries = sorted(before[1][a].values(), key=lambda entry: (entry[2], entry[0]))
                offers += [(2, b, (*entry[:3], self.read_value(entry))) for entry in entries]
            best = {}
            for hop, owner, entry in offers:
                slot = 0 if hop == 0 else self.slot(entry[0], hop)
                held = before[hop][owner].get(slot)
                toss = coin(torch.tensor(self.events), torch.tensor(entry[0]), hop, self.net.seed)
                if held is None or held[0] == entry[0] or float(toss) < self.net.alpha:
                    rival = best.get((hop, owner, slot))
                    if rival is None or (rival[2], rival[0]) <= (entry[2], entry[0]):
                        best[hop, owner, slot] = entry
            for (hop, owner, slot), entry in best.items():
                self.tables[hop][owner][slot] = entry
            self.events += 1
        for u, v, t, edge in zip(*(part.tolist() for part in batch), strict=True):
            self.last[u], self.last[v] = (v, edge, t), (u, edge, t)
        self.self_rep.update(now)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize(
    ("pool", "hash", "alpha"), [("sum", "prime", 0.6), ("attention", "released", 0.9)]
)
def test_network_agrees_with_plain_dictionaries(backend, pool, hash, alpha):
    edges = random_stream()
    net = network(
        edges, slots=(4, 3), self_dim=6, position_dim=5, joint_dim=7, pool=pool, hash=hash,
        alpha=alpha, seed=3, time_dim=2, time_unit=10.0, dropout=0.0, backend=backend,
    )  # fmt: skip
    plain = DictionaryNAT(net)
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for batch in batches(edges, np.arange(len(edges)), 10):
            wrong = torch.from_numpy(rng.integers(1, edges.num_nodes + 1, len(batch.src)))
            options = torch.stack([batch.dst, wrong], 1)
            logits, read = net(batch.src, options, batch.t)
            expected = torch.stack(
                [
                    plain.logit(u, v)
                    for u, row in zip(batch.src.tolist(), options, strict=True)
                    for v in row.tolist()
                ]
            )
            torch.testing.assert_close(logits.flatten(), expected, rtol=1e-4, atol=1e-5)
            net.write(*batch, read)
            plain.write(batch)
    for hop, table in enumerate(net.tables):
        for u in range(1, edges.num_nodes + 1):
            held = {
                slot: (
                    int(table.key[u, slot]),
                    int(table.edge[u, slot]),
                    float(table.time[u, slot]),
                )
                for slot in table.key[u].nonzero()[:, 0].tolist()
            }
            assert held == {slot: entry[:3] for slot, entry in plain.tables[hop][u].items()}
            for slot, entry in plain.tables[hop][u].items():
                torch.testing.assert_close(table.value[u, slot], entry[3], rtol=1e-4, atol=1e-5)
    for u, rep in plain.self_rep.items():
        torch.testing.assert_close(net.self_rep[u], rep, rtol=1e-4, atol=1e-5)


def test_writing_a_batch_that_was_not_scored_is_refused():
    edges = random_stream()
    net = network(edges)
    batch = next(batches(edges, np.arange(10), 10))
    _, read = net(batch.src[:1], batch.dst[:1, None], batch.t[:1])
    with pytest.raises(ValueError, match="were not read"):
        net.write(*batch, read)


def test_sum_pool_without_dropout_equals_pooling_member_by_member():
    edges = random_stream()
    net = network(edges, slots=(4, 3), joint_dim=9, dropout=0.0)
    replay(net, edges, np.arange(60), 10)
    src, options = torch.tensor([1, 2, 3]), torch.tensor([[4, 5], [2, 6], [1, 1]])
    net.train()
    fast = net(src, options, torch.zeros(3))[0]
    # The network cannot know that so little dropout drops nothing.
    net.pool.dropout.p = 1e-12
    slow = net(src, options, torch.zeros(3))[0]
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def offers_and_table(rng, nodes=30, slots=8, count=400):
    table = Table.empty(nodes, slots, 4)
    table.key[:] = torch.from_numpy(rng.integers(0, 3, (nodes, slots)))
    event = np.sort(rng.integers(0, 60, count))
    keys = rng.integers(1, nodes, count)
    return table, Offers(
        torch.from_numpy(rng.integers(1, nodes, count)),
        torch.from_numpy(event),
        torch.from_numpy(keys),
        torch.from_numpy(rng.integers(0, 9, count)),
        torch.from_numpy(rng.integers(0, 5, count).astype(float)),
        # The same entry offered twice has the same value.
        torch.from_numpy(keys[:, None] + np.zeros((1, 4))).float(),
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_backends_write_the_same_table_to_the_bit(alpha):
    rng = np.random.default_rng(5)
    for _ in range(5):
        table, offers = offers_and_table(rng)
        other = Table(**{name: part.clone() for name, part in table.tensors().items()})
        write(table, offers, hop=2, alpha=alpha, seed=7, backend="numba")
        write(other, offers, hop=2, alpha=alpha, seed=7, backend="torch")
        for name in ("key", "time", "value"):
            assert torch.equal(getattr(table, name), getattr(other, name))


def one_offer(key, alpha, table=None, event=0):
    table = table or Table.empty(3, 1, 1)
    column = torch.tensor([key])
    write(
        table,
        Offers(torch.tensor([1]), torch.tensor([event]), column, column, column.double(),
               column[:, None].float()),
        hop=1, alpha=alpha,
    )  # fmt: skip
    return table


def test_empty_and_own_slots_are_always_written_others_with_probability_alpha():
    table = one_offer(5, 0.0)
    assert table.key[1, 0] == 5
    assert one_offer(6, 0.0, table).key[1, 0] == 5
    assert one_offer(6, 1.0, table).key[1, 0] == 6
    taken = [
        int(one_offer(7, 0.3, one_offer(5, 1.0), event).key[1, 0] == 7) for event in range(2000)
    ]
    # Three standard deviations of a binomial share.
    assert abs(np.mean(taken) - 0.3) < 3 * np.sqrt(0.3 * 0.7 / 2000)


def test_coins_are_uniform_and_independent_of_backend_and_batch():
    events, keys = torch.arange(20_000), torch.arange(20_000) % 97
    toss = coin(events, keys, 1, 11)
    assert toss.min() >= 0 and toss.max() < 1
    assert abs(float(toss.mean()) - 0.5) < 3 * np.sqrt(1 / 12 / 20_000)
    assert abs(np.corrcoef(toss[:-1], toss[1:])[0, 1]) < 0.03
    assert torch.equal(toss[100:200], coin(events[100:200], keys[100:200], 1, 11))


def test_released_hash_wastes_most_slots_for_even_seeds():
    ids = torch.arange(1, 100_000)
    reached = {
        (kind, seed): len(hash_slot(ids, 32, kind, seed).unique())
        for kind, seed in (("prime", 0), ("released", 0), ("released", 2), ("released", 7))
    }
    assert reached == {
        ("prime", 0): 32, ("released", 0): 7, ("released", 2): 7, ("released", 7): 32,
    }  # fmt: skip


def test_position_codes_of_a_hand_made_pair():
    # u=1 has 5 at hop 1 and 7 at hop 2; v=2 has 5 at hop 1 and u at hop 2.
    entries = Entries(
        torch.tensor([0, 3, 6]),
        torch.tensor([1, 5, 7, 2, 5, 1]),
        torch.tensor([1, 2, 4, 1, 2, 4]),
        torch.zeros(6, 1),
    )
    expected = {1: 0b100_001, 5: 0b010_010, 7: 0b000_100, 2: 0b001_000}
    for backend in ("numba", "torch"):
        joint = join(entries, torch.tensor([0]), torch.tensor([1]), backend)
        assert dict(zip(joint.key.tolist(), joint.code.tolist(), strict=True)) == expected
        counts = code_counts(joint, 1)
        assert counts.sum() == 4 and all(counts[0, code] == 1 for code in expected.values())


def test_joins_of_both_backends_hold_the_same_members():
    edges = random_stream(events=300)
    net = network(edges, slots=(8, 4))
    replay(net, edges, np.arange(300), 20)
    entries = net.entries(net.read(torch.arange(1, 13)))
    rng = np.random.default_rng(0)
    u, v = torch.from_numpy(rng.integers(0, 12, (2, 50)))
    found = []
    for backend in ("numba", "torch"):
        joint = join(entries, u, v, backend)
        assert torch.equal(entries.key[joint.entry], joint.key[joint.member])
        found.append(
            sorted(zip(*(x.tolist() for x in (joint.pair, joint.key, joint.code)), strict=True))
        )
    assert found[0] == found[1]


def scrambled(h):
    """The hash of `DroppedSum` in whole numbers of Python."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        h = (h ^ h >> shift) * factor % 2**32
    return h


def test_dropped_sum_and_its_gradients_equal_the_plain_formula():
    p, key, members, width = 0.3, 12345, 300, 8
    x = torch.randn(members, 6, requires_grad=True)
    weight = torch.randn(width, 6, requires_grad=True)
    pair = torch.randint(0, 40, (members,))
    rows = [scrambled(i ^ key) for i in range(members)]
    draws = torch.tensor(
        [[scrambled(row ^ c * 0x9E3779B9 % 2**32) for c in range(width + 6)] for row in rows]
    )
    keep = (draws >= round(p * 2**32)) / (1 - p)
    h = ((x * keep[:, width:]) @ weight.T) * keep[:, :width]
    plain = torch.zeros(40, width).index_add(0, pair, h)
    found = DroppedSum.apply(x, weight, pair, 40, p, key)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
    sides = torch.randn(40, width)
    ours = torch.autograd.grad((found * sides).sum(), (x, weight))
    for a, b in zip(ours, torch.autograd.grad((plain * sides).sum(), (x, weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("key", [0, 1, 2**32 - 1])
def test_dropped_sum_drops_its_share_everywhere_independently(p, key):
    members, width = 4000, 50
    # With one column of ones and a pair for each member the sum shows the mask.
    shown = DroppedSum.apply(
        torch.ones(members, 1), torch.ones(width, 1), torch.arange(members), members, p, key
    )
    shown = shown * (1 - p) ** 2
    assert set(shown.round(decimals=5).unique().tolist()) <= {0.0, 1.0}
    entered = shown.any(1)
    sd = np.sqrt(p * (1 - p))
    assert float(entered.double().mean()) == pytest.approx(1 - p, abs=4 * sd / members**0.5)
    keep = shown[entered].double()
    assert float(keep.mean()) == pytest.approx(1 - p, abs=4 * sd / keep.numel() ** 0.5)
    assert (keep.mean(0) - (1 - p)).abs().max() <= 4.5 * sd / len(keep) ** 0.5
    assert (keep.mean(1) - (1 - p)).abs().max() <= 5.5 * sd / width**0.5
    if p:
        for lag in (
            (keep[:, 1:] - 1 + p) * (keep[:, :-1] - 1 + p),
            ((keep[1:] - 1 + p) * (keep[:-1] - 1 + p)),
        ):
            assert abs(float(lag.mean())) < 4 * sd**2 / lag.numel() ** 0.5


def test_pool_draws_another_mask_each_time_and_the_same_after_the_same_seed():
    pool = JointPool(3, 5, heads=2, dropout=0.5, pool="sum")
    x, pair = torch.randn(6, 3), torch.tensor([0, 0, 0, 0, 1, 1])
    torch.manual_seed(1)
    first, second = pool(x, pair, 2), pool(x, pair, 2)
    torch.manual_seed(1)
    assert torch.equal(pool(x, pair, 2), first) and not torch.equal(first, second)
    pool.eval()
    total = torch.zeros(2, 3).index_add(0, pair, x)
    torch.testing.assert_close(pool(x, pair, 2), pool.pooled_sum(total))


def test_attention_of_equal_members_is_their_mean():
    pool = JointPool(3, 5, heads=2, dropout=0.0, pool="attention")
    x = torch.ones(6, 3)
    pooled = pool(x, torch.tensor([0, 0, 0, 0, 1, 1]), 2)
    torch.testing.assert_close(pooled[0], pooled[1])
    torch.testing.assert_close(pooled[0], pool.project(x[0]).view(2, 5).mean(0) + pool.bias)


def test_gradient_stops_at_what_is_stored():
    edges = random_stream()
    net = network(edges, slots=(4, 3))
    for batch in batches(edges, np.arange(40), 10):
        logits, read = net(batch.src, batch.dst[:, None], batch.t)
        net.zero_grad()
        logits.sum().backward()
        net.write(*batch, read)
    assert net.value_message.weight.grad.abs().sum() > 0
    stored = [part for table in net.tables for part in table.tensors().values()]
    assert not any(part.requires_grad for part in [*stored, net.self_rep])


def test_scores_do_not_see_their_own_batch():
    edges = random_stream(events=60)
    net = network(edges, slots=(8, 4)).eval()
    replay(net, edges, np.arange(40), 20)
    batch = next(batches(edges, np.arange(40, 60), 20))
    with torch.no_grad():
        whole = net(batch.src, batch.dst[:, None], batch.t)[0]
        for i in range(20):
            alone = net(batch.src[i : i + 1], batch.dst[i : i + 1, None], batch.t[i : i + 1])[0]
            torch.testing.assert_close(alone[0], whole[i], rtol=1e-4, atol=1e-6)


def test_metrics_agree_with_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = rng.random(60) < 0.4
        score = rng.integers(0, 8, 60).astype(float)
        assert average_precision(truth, score) == pytest.approx(
            average_precision_score(truth, score)
        )
        assert roc_auc(score[truth], score[~truth]) == pytest.approx(roc_auc_score(truth, score))


class Oracle:
    """Scores the true destination by what the test tells it."""

    training = False

    def __init__(self, score):
        self.score, self.seen = score, []

    def __call__(self, src, candidates, t):
        scores = torch.zeros(candidates.shape)
        scores[:, 0] = self.score
        return scores, None

    def write(self, src, dst, t, edge, read=None):
        self.seen += edge.tolist()


@pytest.mark.parametrize(
    ("score", "auc", "mrr"), [(1.0, 1.0, 1.0), (0.0, 0.5, 0.4), (-1.0, 0.0, 0.25)]
)
def test_evaluation_of_oracles(score, auc, mrr):
    edges = random_stream(nodes=12, events=90)
    split = transductive(edges)
    oracle = Oracle(score)
    found = evaluate(
        oracle, edges, split.test, Negatives(edges, split.test), np.random.default_rng(0), each=3
    )
    assert found["pooled_auc"] == auc
    assert found["mrr"] == pytest.approx(mrr)
    assert oracle.seen == (split.test + 1).tolist()


def test_splits_are_disjoint_in_time_and_nodes():
    edges = random_stream(nodes=60, events=900)
    split = transductive(edges)
    assert len(split.train) + len(split.val) + len(split.test) == 900
    assert edges.t[split.train].max() < edges.t[split.val].min() < edges.t[split.test].min()
    held_out = inductive(edges, np.random.default_rng(0))
    assert len(held_out.masked) == 6
    ends = np.stack([edges.src, edges.dst])
    assert not np.isin(
        ends[:, np.concatenate([held_out.train, held_out.val])], held_out.masked
    ).any()
    assert np.isin(ends[:, held_out.test], held_out.masked).any(axis=0).all()
    assert held_out.replay.tolist() == list(range(held_out.replay[-1] + 1))
    assert edges.t[held_out.replay].max() < edges.t[held_out.test].min()


def test_best_epoch_comes_back_with_its_caches():
    edges = random_stream(nodes=20, events=300)
    net = network(edges, slots=(4, 3), self_dim=8, joint_dim=8)
    training = Training(net, edges, transductive(edges), learning_rate=1e-2, batch_size=25)
    training.epoch()
    assert net.events_seen == len(training.split.train) + len(training.split.val)
    weights = net.self_message.weight.detach().clone()
    keys, values = net.tables[1].key.clone(), net.tables[1].value.clone()
    training.best_ap = 2.0
    training.epoch()
    assert not torch.equal(values, net.tables[1].value)
    training.restore_best()
    assert torch.equal(net.self_message.weight, weights)
    assert torch.equal(net.tables[1].key, keys) and torch.equal(net.tables[1].value, values)


def test_inductive_test_starts_from_a_replay_of_all_earlier_events():
    edges = random_stream(nodes=40, events=600)
    net = network(edges, slots=(4, 3), self_dim=8, joint_dim=8)
    split = inductive(edges, np.random.default_rng(0))
    training = Training(net, edges, split, batch_size=50)
    training.epoch()
    masked = torch.from_numpy(split.masked + 1)
    assert not net.tables[1].key[masked].any()
    training.test()
    assert net.events_seen == len(split.replay) + len(split.test)
    assert net.tables[1].key[masked].any(dim=1).all()


def test_training_resumes_to_the_same_numbers():
    edges = random_stream(nodes=20, events=300)

    def fresh():
        torch.manual_seed(4)
        net = network(edges, slots=(4, 3), self_dim=8, joint_dim=8, dropout=0.0)
        return Training(net, edges, transductive(edges), batch_size=25)

    whole = fresh()
    whole.epoch()
    kept = whole.state_dict()
    expected = whole.epoch()
    again = fresh()
    again.load_state_dict(kept)
    assert again.epoch() == expected


def test_early_stopping_counts_epochs_without_gain():
    edges = random_stream()
    training = Training(torch.nn.Linear(1, 1), edges, transductive(edges), patience=3)
    training.best = {}
    training.best_epoch, training.epochs = 2, 4
    assert not training.finished
    training.epochs = 5
    assert training.finished


def test_twins_have_the_same_self_representation():
    task = closure_task(np.random.default_rng(0), nodes=120, events=600)
    edges = task.edges
    net = NATNetwork(edges.num_nodes, slots=(8, 4), time_unit=1.0)
    replay(net, edges, np.arange(len(edges)), 20)
    with torch.no_grad():
        rep = net.read(torch.arange(1, edges.num_nodes + 1)).self_rep
    torch.testing.assert_close(rep[0::2], rep[1::2])
    assert rep.std(0).max() > 1e-3


def test_closure_task_has_no_repeats_and_matched_decoys():
    task = closure_task(np.random.default_rng(1), nodes=120, events=800)
    edges = task.edges
    links = {
        tuple(sorted(pair)) for pair in zip(edges.src.tolist(), edges.dst.tolist(), strict=True)
    }
    assert len(links) == len(edges)
    assert task.closing.mean() > 0.5
    degree, last, partners = {}, {}, {}
    events = zip(edges.src.tolist(), edges.dst.tolist(), edges.t.tolist(), strict=True)
    for i, (u, v, t) in enumerate(events):
        decoy = int(task.decoy[i])
        if i % 2 == 0:
            assert degree.get(v, 0) == degree.get(decoy, 0) and last.get(v) == last.get(decoy)
        if task.closing[i]:
            assert partners[u] & partners[v]
        for a, b in ((u, v), (v, u)):
            degree[a], last[a] = degree.get(a, 0) + 1, t
            partners.setdefault(a, set()).add(b)


def test_triadic_stream_closes_repeats_and_forgets():
    edges = triadic_stream(np.random.default_rng(0), nodes=100, events=3000)
    seen, repeats, closes, partners = set(), 0, 0, {}
    for u, v in zip(edges.src.tolist(), edges.dst.tolist(), strict=True):
        pair = (min(u, v), max(u, v))
        repeats += pair in seen
        closes += pair not in seen and bool(partners.get(u, set()) & partners.get(v, set()))
        seen.add(pair)
        partners.setdefault(u, set()).add(v)
        partners.setdefault(v, set()).add(u)
    assert repeats / 3000 > 0.25 and closes / 3000 > 0.2
    assert np.diff(edges.t).mean() == pytest.approx(1.0, rel=0.1)


def test_joint_features_solve_the_closure_task_and_one_vector_does_not():
    task = closure_task(np.random.default_rng(0), nodes=300, events=4000)
    split = transductive(task.edges)
    auc = {}
    for parts in ("both", "self"):
        torch.manual_seed(0)
        net = NATNetwork(
            task.edges.num_nodes, slots=(16, 8), parts=parts, dropout=0.0, joint_dim=32
        )
        training = Training(net, task.edges, split, learning_rate=1e-3, batch_size=50)
        for _ in range(2):
            training.epoch()
        found = training.test(Decoys(task.decoy), counted=task.closing)
        auc[parts] = found["pooled_auc"]
    # Two short epochs; chance is 0.5, with a standard error of 0.02 for the 500 pairs.
    assert auc["both"] > 0.65
    assert auc["self"] == pytest.approx(0.5, abs=0.001)


def small_model(**settings):
    settings = {
        "slots": (4, 3), "self_dim": 8, "joint_dim": 8, "epochs": 2, "batch_size": 25,
        "learning_rate": 1e-3, "device": "cpu", **settings,
    }  # fmt: skip
    return NAT(**settings)


def named_frame(events=200, features=0):
    rng = np.random.default_rng(3)
    names = np.array([f"person {i}" for i in range(15)])
    frame = pd.DataFrame(
        {
            "src": names[rng.integers(15, size=events)],
            "dst": names[rng.integers(15, size=events)],
            "t": np.sort(rng.random(events) * 1000),
        }
    )
    for i in range(features):
        frame[f"f{i}"] = rng.normal(size=events)
    return frame


def test_saved_model_answers_and_goes_on_as_before(tmp_path):
    frame = named_frame(features=2)
    model = small_model(extra_nodes=2, hash="released", random_state=5).fit(frame[:150])
    model.save(tmp_path / "model.safetensors")
    again = NAT.load(tmp_path / "model.safetensors")
    pairs = [("person 1", "person 2"), ("person 3", "person 3")]
    for _ in range(2):
        assert np.array_equal(model.predict_proba(pairs), again.predict_proba(pairs))
        assert model.neighbourhood("person 1").equals(again.neighbourhood("person 1"))
        for one in (model, again):
            one.update(frame[150:])
        frame = frame.assign(t=frame["t"] + 1000)
    assert again.get_params() == model.get_params()


def test_update_equals_having_seen_the_events_in_fit():
    frame = named_frame()
    model = small_model().fit(frame)
    net = model.network_
    before = net.tables[1].key.clone()
    later = frame.assign(t=frame["t"] + 2000)
    model.update(later)
    assert not torch.equal(before, net.tables[1].key)
    copy = small_model().fit(frame).network_
    replay_ids = TemporalEdges.from_frame(later)
    for batch in batches(replay_ids, np.arange(200), 25):
        copy.write(batch.src, batch.dst, batch.t, torch.zeros_like(batch.edge))
    for name, part in net.tables[2].tensors().items():
        if name != "edge":
            torch.testing.assert_close(part, copy.tables[2].tensors()[name])


def test_neighbourhood_shows_the_last_meetings():
    frame = pd.DataFrame({"src": [1, 1, 2, 9], "dst": [2, 3, 4, 1], "t": [1.0, 2.0, 3.0, 4.0]})
    model = small_model(slots=(64, 64), epochs=1, batch_size=1, validation=0.3).fit(frame)
    found = model.neighbourhood(1)
    first = found[found["hop"] == 1]
    assert dict(zip(first["neighbour"], first["time"], strict=True)) == {2: 1.0, 3: 2.0, 9: 4.0}
    # 4 met 2 when 2 already knew 1; nobody who met 1 knew anybody before.
    assert set(model.neighbourhood(4)["neighbour"]) == {1, 2}


def test_all_kinds_of_input_give_the_same_model(tmp_path):
    edges = random_stream(events=120, features=0)
    frame = pd.DataFrame({"src": edges.src, "dst": edges.dst, "t": edges.t})
    frame.to_csv(tmp_path / "edges.txt", sep=" ", index=False, header=False)
    plain = TemporalEdges.from_frame(frame)
    inputs = [frame, frame.to_numpy(), plain.to_pyg(), tmp_path / "edges.txt", plain]
    answers = [small_model().fit(one).predict_proba([(1, 2), (3, 4)]) for one in inputs]
    assert all(np.array_equal(answers[0], answer) for answer in answers)
    assert np.allclose(answers[0].sum(1), 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, f: m.predict_proba([("person 1", "nobody")]), r"unknown node.*nobody"),
        (
            lambda m, f: m.predict_proba([("person 1", "person 2")], t=3.0),
            "question about the past",
        ),
        (lambda m, f: m.predict_proba([("person 1",)]), "not pairs"),
        (lambda m, f: m.update(f), "events of the past"),
        (lambda m, f: m.update(f.assign(t=f["t"] + 2000, src="new" + f["src"])), "room for 0"),
        (lambda m, f: m.update(f.assign(t=f["t"] + 2000, w=1.0)), "features do not fit"),
        (lambda m, f: m.update(f.assign(t=f["t"] + 2000, src=1, dst=2)), "names of another kind"),
        (lambda m, f: m.update(f[:0]), "no events"),
        (lambda m, f: small_model().predict_proba([("a", "b")]), "not fitted"),
        (lambda m, f: m.predict_proba([(1, 2)]), "unknown node"),
        (lambda m, f: small_model().fit(np.zeros((3, 2))), "not a stream"),
        (lambda m, f: small_model().fit(f.assign(t=1.0)), "too few distinct times"),
        (lambda m, f: small_model().fit(f.assign(t=-1.0)), "wrong time"),
        (lambda m, f: small_model(slots=(0,)).fit(f), "slots must be"),
        (lambda m, f: small_model(slots=(4, 4, 4)).fit(f), "at most two"),
        (lambda m, f: small_model(alpha=1.5).fit(f), "alpha is a probability"),
        (lambda m, f: small_model().evaluate(f.assign(t=1.0)), "no validation events"),
        (lambda m, f: small_model().evaluate(f[:4], "inductive"), "too few nodes"),
    ],
)
def test_bad_questions_are_refused(call, message):
    frame = named_frame()
    model = small_model(epochs=1).fit(frame)
    with pytest.raises(ValueError, match=message):
        call(model, frame)


def test_files_of_other_kinds_are_no_models(tmp_path):
    (tmp_path / "model").write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"not a \.safetensors file"):
        NAT.load(tmp_path / "model")
    with pytest.raises(DataError, match="no such file"):
        NAT.load(tmp_path / "nothing")


def test_edge_bank_and_its_window_on_a_hand_made_stream():
    bank, short, common = EdgeBank(), EdgeBank(window=5.0), CommonNeighbours()
    batch = [torch.tensor(x) for x in ([1, 2, 1], [2, 3, 4], [0.0, 1.0, 8.0], [1, 2, 3])]
    src, options, now = torch.tensor([1]), torch.tensor([[2, 3, 4]]), torch.tensor([9.0])
    for model in (bank, short, common):
        model.write(*batch)
    assert bank(src, options, now)[0].tolist() == [[1, 0, 1]]
    assert bank(torch.tensor([2]), torch.tensor([[1, 3, 4]]), now)[0].tolist() == [[1, 1, 0]]
    assert short(src, options, now)[0].tolist() == [[0, 0, 1]]
    # 1 and 3 share partner 2: half a point; 1 and 4 met.
    assert common(src, options, now)[0].tolist() == [[1, 0.5, 1]]
    aged = CommonNeighbours(halflife=4.5)
    aged.write(*batch)
    assert float(aged(src, options, now)[0][0, 1]) == pytest.approx(0.25 / 1.25)


def test_memory_rules_reach_the_known_numbers_on_college_messages(real_data):
    edges = read_temporal(real_data / "collegemsg" / "CollegeMsg.txt")
    split = transductive(edges)
    found = {}
    for name, rule in (("bank", EdgeBank()), ("common", CommonNeighbours())):
        replay(rule, edges, np.concatenate([split.train, split.val]), 1000)
        negatives = Negatives(edges, split.train, split.val, split.test)
        rng = np.random.default_rng(0)
        found[name] = evaluate(rule, edges, split.test, negatives, rng, batch_size=1)
    # Counted once before with other code: 0.883, 0.898 and 0.902.
    assert found["bank"]["pooled_ap"] == pytest.approx(0.883, abs=0.005)
    assert found["common"]["pooled_ap"] == pytest.approx(0.898, abs=0.005)
    assert found["common"]["pooled_auc"] == pytest.approx(0.902, abs=0.005)


NETWORKS = {
    "tgn": lambda edges: MemoryNetwork(edges, "tgn", width=8, neighbours=4),
    "jodie": lambda edges: MemoryNetwork(edges, "jodie", width=8),
    "dyrep": lambda edges: MemoryNetwork(edges, "dyrep", width=8, neighbours=4),
    "geometric": lambda edges: GeometricTGN(edges, width=8, neighbours=4),
    "tgat": lambda edges: TGAT(edges, width=8, neighbours=4),
    "mixer": lambda edges: GraphMixer(edges, width=8, links=4),
    "cawn": lambda edges: WalkNetwork(edges, width=8, walks=4),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_learn_from_the_past_only_and_come_back(kind):
    edges = random_stream(nodes=20, events=300)
    torch.manual_seed(0)
    model = NETWORKS[kind](edges)
    training = Training(model, edges, transductive(edges), learning_rate=1e-2, batch_size=30)
    first = training.epoch()["loss"]
    for _ in range(4):
        last = training.epoch()["loss"]
    assert last < first
    # Scores must not depend on the batch's own links, which `write` shows only afterwards.
    events = training.split.test
    found = []
    for size in (len(events), len(events)):
        training.restore_best()
        batch = next(batches(edges, events, size))
        model.eval()
        with torch.no_grad():
            found.append(model(batch.src, batch.dst[:, None], batch.t)[0])
        model.write(*batch)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("kind", [k for k in NETWORKS if k != "geometric"])
def test_networks_see_the_features_of_events(kind):
    scores = []
    for factor in (1.0, 2.0):
        edges = random_stream(nodes=8, events=120)
        edges.msg[:] *= factor
        torch.manual_seed(0)
        model = NETWORKS[kind](edges).eval()
        # Messages wait for one more event before they are in a memory.
        replay(model, edges, np.arange(120), 20)
        src, options = torch.arange(1, 5), torch.arange(5, 9)[:, None]
        with torch.no_grad():
            scores.append(model(src, options, torch.full((4,), 50.0))[0])
    assert (scores[0] - scores[1]).abs().min() > 0


def stream_of_pairs(events=80, nodes=9, seed=2):
    """No links to oneself, distinct whole times: every `last` is unique."""
    rng = np.random.default_rng(seed)
    pairs = np.array([rng.choice(nodes, 2, replace=False) for _ in range(events)])
    return TemporalEdges(
        pairs[:, 0], pairs[:, 1], np.cumsum(rng.integers(1, 4, events)).astype(float),
        np.arange(nodes), rng.normal(size=(events, 3)).astype(np.float32),
        rng.normal(size=(nodes, 2)).astype(np.float32),
    )  # fmt: skip


class LastMessage(torch.nn.Module):
    """What `LastAggregator` is meant to do; it gives nodes without a message that of another."""

    def forward(self, msg, index, t, dim_size):
        out = msg.new_zeros(dim_size, msg.shape[1])
        order = t.argsort()
        for i in order.tolist():
            out[index[i]] = msg[i]
        return out


def test_memory_equals_that_of_pytorch_geometric():
    edges = stream_of_pairs()
    ours, theirs = MemoryNetwork(edges, "tgn", width=6), GeometricTGN(edges, width=6)
    memory = theirs.memory
    memory.aggr_module = LastMessage()
    with torch.no_grad():
        # Theirs also updates nodes that have no message; without biases that changes nothing.
        ours.update.bias_ih.zero_()
        ours.update.bias_hh.zero_()
        memory.time_enc.lin.weight[:, 0] = ours.code.frequency
        memory.time_enc.lin.bias.copy_(ours.code.phase)
    memory.gru.load_state_dict(ours.update.state_dict())
    nodes = torch.arange(1, 10)
    for batch in batches(edges, np.arange(80), 8):
        ours.write(*batch)
        theirs.write(*batch)
        found, expected = ours.read(nodes), memory(nodes)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
        met = ours.partner[nodes] > 0
        assert found[1][met].tolist() == expected[1][met].tolist()
    assert met.all() and found[0].abs().min() > 0


def test_attention_equals_that_of_torch():
    attention = EventAttention(5, 7, 3, width=6, heads=2, dropout=0.0)
    peer = torch.nn.MultiheadAttention(
        6, 2, kdim=7, vdim=7, batch_first=True, bias=True
    )  # fmt: skip
    query, rows = torch.randn(4, 5), torch.randn(4, 9, 7)
    present = torch.rand(4, 9) < 0.6
    present[:, 0] = True
    with torch.no_grad():
        peer.q_proj_weight.copy_(torch.eye(6))
        peer.k_proj_weight.copy_(attention.key.weight)
        peer.v_proj_weight.copy_(attention.value.weight)
        peer.in_proj_bias.zero_()
        peer.in_proj_bias[12:] = attention.value.bias
        peer.out_proj.load_state_dict(attention.out.state_dict())
    expected, _ = peer(attention.query(query)[:, None], rows, rows, key_padding_mask=~present)
    torch.testing.assert_close(attention.attend(query, rows, present), expected[:, 0])
    nothing = attention.attend(query, rows, torch.zeros(4, 9, dtype=torch.bool))
    torch.testing.assert_close(nothing, attention.out.bias.expand(4, 6))


def attended(net, own, events, memory, now):
    """`net.attention` over a plain list of (partner, edge, time), without padding."""
    code = [net.code(torch.tensor((now - t) / net.time_unit)) for *_, t in events]
    rows = [
        torch.cat([memory[v], net.msg[edge], c])
        for (v, edge, _), c in zip(events, code, strict=True)
    ]
    width = 2 * len(own) + net.msg.shape[1]
    rows = torch.stack(rows) if rows else torch.zeros(0, width)
    query = torch.cat([own, net.code(torch.zeros(()))])
    return net.attention(
        query[None], rows[None], torch.ones(1, len(rows), dtype=torch.bool), own[None]
    )[0]


@pytest.mark.parametrize("kind", ["tgn", "dyrep"])
def test_memory_networks_agree_with_plain_dictionaries(kind):
    edges = stream_of_pairs()
    net = MemoryNetwork(edges, kind, width=6, neighbours=3, time_unit=2.5).eval()
    zero = torch.zeros(6)
    memory = dict.fromkeys(range(10), zero)
    updated, events = dict.fromkeys(range(10), 0.0), {u: [] for u in range(10)}
    waiting = {}

    def read(u):
        if u not in waiting:
            return memory[u]
        v, edge, t, sent = waiting[u]
        other = attended(net, memory[v], sent, memory, t) if kind == "dyrep" else memory[v]
        code = net.code(torch.tensor((t - updated[u]) / net.time_unit))
        message = torch.cat([memory[u], other, net.msg[edge], code])
        return net.update(message[None], memory[u][None])[0]

    def vector(u, now):
        if kind == "dyrep":
            return read(u)
        everyone = {v: read(v) for v in range(10)}
        return attended(net, everyone[u], events[u][-3:], everyone, now)

    with torch.no_grad():
        for batch in batches(edges, np.arange(80), 8):
            options = torch.stack([batch.dst, batch.src % 9 + 1], 1)
            expected = [
                [
                    net.score.layers(torch.cat([vector(u, now), vector(v, now)]))[0]
                    for v in row.tolist()
                ]
                for u, row, now in zip(batch.src.tolist(), options, batch.t.tolist(), strict=True)
            ]
            found, _ = net(batch.src, options, batch.t)
            torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
            net.write(*batch)
            ends = {*batch.src.tolist(), *batch.dst.tolist()}
            memory |= {u: read(u) for u in ends}
            updated |= {u: waiting[u][2] for u in ends if u in waiting}
            before = {u: list(seen) for u, seen in events.items()}
            for u, v, t, edge in zip(*(part.tolist() for part in batch), strict=True):
                for a, b in ((u, v), (v, u)):
                    waiting[a] = (b, edge, t, before[b][-3:])
                    events[a].append((b, edge, t))


def test_two_layers_of_tgat_follow_two_events_back():
    # Each node asked for has one event before its time: what is drawn is certain.
    edges = TemporalEdges(
        np.array([0, 1, 3]), np.array([1, 2, 4]), np.array([1.0, 3.0, 4.0]), np.arange(5),
        np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32),
        np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32),
    )  # fmt: skip
    net = TGAT(edges, width=6, neighbours=3, time_unit=2.0).eval()
    replay(net, edges, np.arange(3), 3)

    def layer(depth, own, events, now):
        """events: (vector below, edge, time)."""
        code = [net.code(torch.tensor((now - t) / 2)) for *_, t in events]
        rows = [
            torch.cat([z, net.msg[edge], c]) for (z, edge, _), c in zip(events, code, strict=True)
        ]
        width = len(own) + 2 + 6
        rows = torch.stack(rows) if rows else torch.zeros(0, width)
        query = torch.cat([own, net.code(torch.zeros(()))])[None]
        present = torch.ones(1, len(rows), dtype=torch.bool)
        return net.layers[depth](query, rows[None], present, own[None])[0]

    x = net.x
    with torch.no_grad():
        # Node 3 at 5.0 met 2 at 3.0 (event 2), which had met 1 at 1.0 (event 1).
        z_2 = layer(0, x[2], [(x[1], 1, 1.0)], 3.0)
        z_3 = layer(1, layer(0, x[3], [(x[2], 2, 3.0)], 5.0), [(z_2, 2, 3.0)], 5.0)
        # Node 5 at 5.0 met 4 at 4.0, which had met nobody.
        z_4 = layer(0, x[4], [], 4.0)
        z_5 = layer(1, layer(0, x[5], [(x[4], 3, 4.0)], 5.0), [(z_4, 3, 4.0)], 5.0)
        found, _ = net(torch.tensor([3]), torch.tensor([[5]]), torch.tensor([5.0]).double())
        torch.testing.assert_close(found[0, 0], net.score.layers(torch.cat([z_3, z_5]))[0])


def test_history_draws_uniformly_from_before_and_never_from_after():
    edges = TemporalEdges.from_arrays(np.zeros(6, int), np.arange(1, 7), np.arange(6.0))
    history = History(edges)
    history.append(*next(batches(edges, np.arange(6), 6)))
    neighbour, edge, time = history.draw(np.ones(8000, int), np.full(8000, 4.0))
    # Events at 0, 1, 2, 3 are before 4; chi-square of 3 degrees, one in 10,000.
    counts = np.bincount(edge, minlength=5)[1:]
    assert len(counts) == 4 and ((counts - 2000) ** 2 / 2000).sum() < 21.1
    assert (neighbour == edge + 1).all() and (time == edge - 1).all()
    none = history.draw(np.array([0, 1, 7]), np.array([9.0, 0.0, 5.0]))
    assert not any(part.any() for part in none)
    recent = History(edges, rate=1.0)
    recent.append(*next(batches(edges, np.arange(6), 6)))
    edge = recent.draw(np.ones(8000, int), np.full(8000, 4.0))[1]
    assert (edge == 4).mean() == pytest.approx(1 / (1 + np.exp(-1) + np.exp(-2) + np.exp(-3)),
                                               abs=0.025)  # fmt: skip


def test_rings_keep_the_newest_events_newest_first():
    edges = random_stream(nodes=5, events=200)
    recent = Recent(6, 4)
    for batch in batches(edges, np.arange(200), 33):
        recent.append(*batch)
    for u in range(5):
        own = [
            (b + 1, i + 1, edges.t[i])
            for i in range(200)
            for a, b in ((edges.src[i], edges.dst[i]), (edges.dst[i], edges.src[i]))
            if a == u
        ]
        found = zip(*(part[0].tolist() for part in recent.newest(torch.tensor([u + 1]))),
                    strict=True)  # fmt: skip
        assert list(found) == own[:-5:-1]


def test_walks_go_back_in_time_along_links():
    edges = random_stream(nodes=12, events=200)
    network = WalkNetwork(edges, walks=16, rate=0.05)
    replay(network, edges, np.arange(200), 50)
    nodes, events, times = network.sample(np.arange(1, 13), np.full(12, 25.5))
    assert (nodes[..., 1] > 0).all() and (nodes[..., 2] > 0).any()
    walks = (part.reshape(-1, 3) for part in (nodes, events, times))
    for walk, event, when in zip(*walks, strict=True):
        for step in (1, 2):
            if walk[step]:
                i = event[step] - 1
                ends = {edges.src[i] + 1, edges.dst[i] + 1}
                assert {walk[step - 1], walk[step]} == ends and when[step] == edges.t[i]
                assert when[step] < when[step - 1]


def test_walk_names_are_the_places_of_their_nodes():
    names = np.zeros((1, 2, 2, 3, 2), np.int64)
    u = np.array([[[1, 3, 1], [1, 4, 0]]])
    v = np.array([[[2, 3, 4], [2, 0, 0]]])
    distinct = _name(u, v, names)
    counts = distinct[names].reshape(1, 2, 2, 3, 6)
    assert counts[0, 0, 0, 1].tolist() == [0, 1, 0, 0, 1, 0]
    assert counts[0, 0, 0, 0].tolist() == [2, 0, 1, 0, 0, 0]
    assert counts[0, 1, 0, 2].tolist() == [0, 1, 0, 0, 0, 1]
    assert counts[0, 1, 1, 1].tolist() == [0] * 6
    assert len(distinct) == len(np.unique(distinct, axis=0))


def test_one_vector_networks_score_twins_alike():
    task = closure_task(np.random.default_rng(0), nodes=60, events=400)
    for kind in ("tgn", "jodie", "dyrep", "mixer"):
        torch.manual_seed(0)
        model = NETWORKS[kind](task.edges).eval()
        replay(model, task.edges, np.arange(300), 20)
        batch = next(batches(task.edges, np.arange(300, 340), 40))
        wrong = Decoys(task.decoy).draw(np.random.default_rng(0), batch.edge.numpy() - 1)
        with torch.no_grad():
            scores, _ = model(batch.src, torch.cat([batch.dst[:, None], wrong], 1), batch.t)
        torch.testing.assert_close(scores[:, 0], scores[:, 1], rtol=1e-4, atol=1e-5)
        assert scores[:, 0].std() > 0


def test_comparison_puts_all_under_one_protocol():
    frame = named_frame(events=400)
    found = compare(small_model(), frame)
    assert found.index[0] == "NAT" and len(found) == 5
    assert found.drop(index="NAT").loc["EdgeBank", "pooled_auc"] != found.loc["NAT", "pooled_auc"]
    edges = TemporalEdges.from_frame(frame)
    split = transductive(edges)
    met = {tuple(sorted(pair)) for pair in zip(edges.src, edges.dst, strict=True)}
    assert ((found >= 0) & (found <= 1)).all(axis=None)
    # 15 people, 340 earlier events: nearly all pairs have met, so that the bank cannot rank them.
    assert len(met) > 90 and abs(found.loc["EdgeBank", "pooled_auc"] - 0.5) < 0.1
    assert len(split.test) == 60


def commands():
    from click.testing import CliRunner

    from peira.cli.using import commands as mounted

    runner = CliRunner()
    return lambda *arguments: runner.invoke(mounted("nat"), [str(a) for a in arguments])


def test_commands_from_fit_to_prediction(tmp_path):
    use = commands()
    frame = named_frame()
    frame.to_csv(tmp_path / "calls.csv", index=False)
    model = tmp_path / "calls.safetensors"
    done = use("fit", tmp_path / "calls.csv", model, "--epochs", 1, "--extra-nodes", 1)
    assert done.exit_code == 0, done.output
    assert "15 nodes" in done.output
    shown = use("neighbourhood", model, "person 1")
    assert shown.exit_code == 0 and "person" in shown.output
    later = frame.assign(t=frame["t"] + 2000, dst="somebody new")[:5]
    later.to_csv(tmp_path / "later.csv", index=False)
    assert use("update", model, tmp_path / "later.csv").exit_code == 0
    (tmp_path / "pairs.csv").write_text("src,dst\nperson 1,somebody new\nperson 2,person 3\n")
    answer = tmp_path / "answer.csv"
    assert use("predict", model, tmp_path / "pairs.csv", answer).exit_code == 0
    table = pd.read_csv(answer)
    expected = NAT.load(model).predict_proba(table[["src", "dst"]].to_numpy(dtype=str))[:, 1]
    assert table["probability"].to_numpy() == pytest.approx(expected)
    (tmp_path / "bad.csv").write_text("src,dst,t\na,b,1\nc,d,x\n")
    wrong = use("fit", tmp_path / "bad.csv", model)
    assert isinstance(wrong.exception, DataError) and "row 3" in str(wrong.exception)


def test_evaluate_command_prints_all_rules(tmp_path):
    named_frame(events=300).to_csv(tmp_path / "calls.csv", index=False)
    done = commands()("evaluate", tmp_path / "calls.csv", "--epochs", 1)
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in ("NAT", "EdgeBank", "common neighbours"))
