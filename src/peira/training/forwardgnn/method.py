"""Forward learning of graph neural networks, as scikit-learn style estimators.

Source: Park et al., "Forward Learning of Graph Neural Networks", ICLR 2024.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import RandomLinkSplit
from torch_geometric.utils import is_undirected, to_undirected

from peira.data.arrays import read_record, write_record
from peira.training.forwardgnn.convolutions import (
    Conv,
    Edges,
    Features,
    SparseMatrix,
    as_features,
    below,
    scipy_csr,
)
from peira.training.forwardgnn.graph import NodeGraph
from peira.training.forwardgnn.learners import (
    LabelAppending,
    NodeLearner,
    Settings,
    SingleForward,
    Validation,
    VirtualNodes,
)
from peira.training.forwardgnn.links import (
    BottomUpLinks,
    GoodnessLinks,
    LinkData,
    LinkLearner,
    TopDownLinks,
    link_metrics,
)
from peira.training.forwardgnn.topdown import SETTLING_STEPS, TopToInput, TopToLoss

NODE_LEARNERS: dict[str, type[NodeLearner]] = {
    "sf": SingleForward,
    "ff_la": LabelAppending,
    "ff_vn": VirtualNodes,
    "top2input": TopToInput,
    "top2loss": TopToLoss,
}
# These judge a class by writing it on the nodes in question, one class after the other.
KIND = "saved ForwardGNN"
CANDIDATE_LEARNERS = ("ff_la", "ff_vn")
LINK_LEARNERS: dict[str, type[LinkLearner]] = {
    "fl": BottomUpLinks,
    "ff": GoodnessLinks,
    "topdown": TopDownLinks,
}
# Shares of the edges that the published protocol keeps for validation and test.
VALIDATION_LINKS = 0.16
TEST_LINKS = 0.2


class ForwardGNN(ClassifierMixin, BaseEstimator):
    """Node classes by a graph network whose layers learn without backpropagation between them.

    Args:
        conv: "gcn", "sage" (mean), "gat" (4 heads), or a function of (inputs, outputs) that returns
            a module with `forward(x, edge_index)`.
        hidden: width of every layer.
        layers: number of layers.
        learner: "sf" (single forward: virtual class nodes, no negative pass), "ff_la" and "ff_vn"
            (forward-forward with appended labels or with virtual nodes), "top2input" and
            "top2loss" (single forward with signals from the layers above).
        epochs: most epochs per layer; time steps of all layers for the top-down learners.
        val_every: epochs between two looks at the validation nodes.
        patience: looks without improvement after which a layer stops learning.
        lr: learning rate of every layer's Adam.
        weight_decay: its L2 penalty.
        theta: goodness threshold of "ff_la" and "ff_vn".
        negatives: negative sets of "ff_la" and "ff_vn"; None takes all wrong classes.
        temperature: divides the logits of the single-forward learners.
        alternating: top-down learners update layers 1, 3, ... and then 2, 4, ...; False updates
            all at once, as the released code does for "top2loss" whatever it is told.
        test_steps: time steps of a "top2input" prediction.
        append_label: give learners with virtual nodes the label columns as input too.
        reveal_validation: let "ff_la" and "ff_vn" use the validation classes as input when they
            predict, as the released code does; the other learners never do.
        bottom_up: "normalised" or "published", see `Settings`; for "top2loss".
        cache: propagate the constant input of a layer once instead of in every epoch.
        symmetrize: add the missing directions of a directed graph.
        device: where to train.
        random_state: seed of weights, virtual features and negative classes.

    Attributes:
        classes_: the classes as they were given, in the order of the columns of `predict_proba`.
        network_: the trained module; `network_.layers[l].conv` is an ordinary PyG convolution.
        layer_accuracy_: accuracy on the validation nodes of the prediction accumulated up to each
            layer (one number for the top-down learners; NaN without validation nodes).

    Example:
        >>> import networkx as nx, numpy as np
        >>> club = nx.karate_club_graph()
        >>> arcs = np.array([*club.edges, *((v, u) for u, v in club.edges)]).T
        >>> y = np.array([club.nodes[v]["club"] == "Officer" for v in club]).astype(int)
        >>> train = np.isin(np.arange(34), [0, 1, 2, 33, 32, 31])
        >>> clf = ForwardGNN(hidden=16, layers=2, epochs=50, random_state=0)
        >>> int((clf.fit(np.eye(34), arcs, y, train).predict(np.eye(34), arcs) == y).sum()) > 28
        True
    """

    def __init__(
        self,
        conv: Conv = "gcn",
        hidden: int = 128,
        layers: int = 2,
        learner: Literal["sf", "ff_la", "ff_vn", "top2input", "top2loss"] = "sf",
        *,
        epochs: int = 1000,
        val_every: int = 2,
        patience: int = 100,
        lr: float = 1e-3,
        weight_decay: float = 5e-4,
        theta: float = 2.0,
        negatives: int | None = None,
        temperature: float = 1.0,
        alternating: bool = True,
        test_steps: int = 10,
        append_label: bool = False,
        reveal_validation: bool = False,
        bottom_up: Literal["normalised", "published"] = "normalised",
        cache: bool = True,
        symmetrize: bool = False,
        device: str = "cpu",
        random_state: int | None = None,
    ) -> None:
        self.conv, self.hidden, self.layers, self.learner = conv, hidden, layers, learner
        self.epochs, self.val_every, self.patience = epochs, val_every, patience
        self.lr, self.weight_decay = lr, weight_decay
        self.theta, self.negatives, self.temperature = theta, negatives, temperature
        self.alternating, self.test_steps = alternating, test_steps
        self.append_label, self.reveal_validation = append_label, reveal_validation
        self.bottom_up, self.cache, self.symmetrize = bottom_up, cache, symmetrize
        self.device, self.random_state = device, random_state

    def fit(
        self,
        x: Float[np.ndarray, "nodes width"],
        edge_index: Int[np.ndarray, "2 arcs"],
        y: Int[np.ndarray, " nodes"],
        train_mask: Bool[np.ndarray, " nodes"],
        val_mask: Bool[np.ndarray, " nodes"] | None = None,
    ) -> Self:
        """Learn from the classes of the training nodes, looking at the whole graph.

        Args:
            x: node features; array, tensor or SciPy sparse matrix.
            edge_index: source and target of every arc, numbered from 0; both directions of an
                undirected edge.
            y: class of every node, -1 where it is unknown. Classes of nodes in neither mask are
                never used.
            train_mask: nodes to learn from; every class needs at least one.
            val_mask: nodes for early stopping.

        Raises:
            ValueError: naming what is wrong with the input.
        """
        learner = self.begin(x, edge_index, y, train_mask, val_mask)
        while not learner.done:
            learner.step()
        return self.end()

    def begin(
        self, x: Any, edge_index: Any, y: Any, train_mask: Any, val_mask: Any = None
    ) -> NodeLearner:
        """What `fit` starts with: the untrained learner, to be driven by its `step()`.

        Takes what `fit` takes. Call `end()` when the learner is done.
        """
        self._check_settings()
        features = checked_features(x, self.device)
        index = checked_edges(edge_index, features.shape[0], self.symmetrize)
        labels, train, validation = _checked_labels(y, train_mask, val_mask, features.shape[0])
        self.classes_, codes = _classes(labels, train)
        to = torch.device(self.device)
        known, asked = torch.from_numpy(train).to(to), torch.from_numpy(validation).to(to)
        coded = torch.from_numpy(codes).to(to)
        self.graph_ = NodeGraph(
            x=features,
            edges=Edges(index.to(to), features.shape[0]),
            classes=len(self.classes_),
            known=known,
            known_y=coded[known],
        )
        look = Validation(asked, coded[asked]) if len(asked) else None
        with seeded(self.random_state):
            self.network_ = NODE_LEARNERS[self.learner](self._settings(), self.graph_, look)
        return self.network_

    def end(self) -> Self:
        """What `fit` ends with, after a learner that was driven by hand; trains no more."""
        self.network_.finish()
        self.layer_accuracy_ = list(self.network_.layer_scores)
        self.n_features_in_ = self.graph_.x.shape[1]
        return self

    def predict(
        self,
        x: Float[np.ndarray, "nodes width"],
        edge_index: Int[np.ndarray, "2 arcs"],
        mask: Bool[np.ndarray, " nodes"] | None = None,
    ) -> Int[np.ndarray, " wanted"]:
        """Class of every node (of the nodes in `mask`), as `fit` was given them."""
        return self.classes_[self.predict_proba(x, edge_index, mask).argmax(axis=1)]

    def predict_proba(
        self,
        x: Float[np.ndarray, "nodes width"],
        edge_index: Int[np.ndarray, "2 arcs"],
        mask: Bool[np.ndarray, " nodes"] | None = None,
    ) -> Float[np.ndarray, "wanted classes"]:
        """Probability of every class for every node (for the nodes in `mask`).

        If the first rows of `x` are the features that `fit` saw, this is the training graph,
        possibly grown, and its training nodes keep their classes. Any other graph is put beside
        the training graph, from which the virtual class nodes get their neighbours.

        For the forward-forward learners, which judge a class by writing it on all the nodes in
        question, training nodes are judged apart from the others and with their classes hidden.
        """
        check_is_fitted(self, "n_features_in_")
        features = checked_features(x, self.device)
        if features.shape[1] != self.n_features_in_:
            raise ValueError(
                f"x has {features.shape[1]} columns, but the network was trained on "
                f"{self.n_features_in_}"
            )
        index = checked_edges(edge_index, features.shape[0], self.symmetrize)
        graph, shift = self._with_training_graph(features, index.to(self.graph_.device))
        wanted = np.arange(features.shape[0])
        if mask is not None:
            wanted = wanted[checked_mask(mask, features.shape[0], "mask")]
        nodes = torch.from_numpy(wanted + shift).to(self.graph_.device)
        return self._judged(graph, nodes).cpu().numpy()

    def score(self, x: Any, edge_index: Any, y: Any, mask: Any = None) -> float:
        """Accuracy on the nodes of known class (of those in `mask`)."""
        y = np.asarray(y)
        judged = y >= 0
        if mask is not None:
            judged = judged & checked_mask(mask, len(y), "mask")
        return float((self.predict(x, edge_index, judged) == y[judged]).mean())

    def save(self, path: str | Path, class_names: Sequence[str] | None = None) -> None:
        """Write weights, training graph and settings to one safetensors file, atomically.

        The training graph belongs to the model: the virtual class nodes hear from it.

        Args:
            path: file to write.
            class_names: names of `classes_`, kept as `class_names_` of the loaded model.

        Raises:
            ValueError: for a `conv` that is a function of your own.
        """
        check_is_fitted(self, "n_features_in_")
        if not isinstance(self.conv, str):
            raise ValueError("only models with conv='gcn', 'sage' or 'gat' can be saved")
        graph = self.graph_
        x = scipy_csr(graph.x)
        tensors = {f"network.{name}": value for name, value in self.network_.state_dict().items()}
        for name in ("data", "indices", "indptr"):
            tensors[f"x.{name}"] = torch.from_numpy(getattr(x, name).copy())
        tensors |= {
            "edges": graph.edges.index,
            "known": graph.known,
            "known_y": graph.known_y,
            "classes": torch.from_numpy(self.classes_),
        }
        about = {
            "settings": self.get_params(deep=False),
            "shape": x.shape,
            "dense": isinstance(graph.x, Tensor),
            "layer_accuracy": self.layer_accuracy_,
            "class_names": list(class_names or map(str, self.classes_)),
        }
        write_record(Path(path), KIND, tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; raises `DataError` for any other file."""
        stored, about = read_record(Path(path), KIND)
        self = cls(**about["settings"])
        device = torch.device(self.device)
        parts = [stored[f"x.{name}"].numpy() for name in ("data", "indices", "indptr")]
        matrix = sparse.csr_matrix(tuple(parts), shape=about["shape"])
        x = matrix.toarray() if about["dense"] else matrix
        self.classes_ = stored["classes"].numpy()
        self.graph_ = NodeGraph(
            x=torch.from_numpy(x).to(device) if about["dense"] else SparseMatrix(x, device),
            edges=Edges(stored["edges"].to(device), matrix.shape[0]),
            classes=len(self.classes_),
            known=stored["known"].to(device),
            known_y=stored["known_y"].to(device),
        )
        with seeded(0):
            self.network_ = NODE_LEARNERS[self.learner](self._settings(), self.graph_, None)
        self.network_.load_state_dict(
            {k.removeprefix("network."): v for k, v in stored.items() if k.startswith("network.")}
        )
        self.layer_accuracy_, self.n_features_in_ = about["layer_accuracy"], matrix.shape[1]
        self.class_names_ = about["class_names"]
        return self

    def _settings(self) -> Settings:
        names = Settings.__dataclass_fields__
        return Settings(**{name: getattr(self, name) for name in names})

    def _check_settings(self) -> None:
        if self.learner not in NODE_LEARNERS:
            raise ValueError(
                f"unknown learner {self.learner!r}; choose from {', '.join(NODE_LEARNERS)}"
            )
        _check_sizes(self)

    def _with_training_graph(self, x: Features, index: Tensor) -> tuple[NodeGraph, int]:
        """The graph to predict on, and the number of its first node that was asked about."""
        trained = self.graph_
        revealed = self.reveal_validation and self.learner in CANDIDATE_LEARNERS
        if revealed and self.network_.validation is not None:
            seen = self.network_.validation
            trained = trained.with_known(seen.nodes, seen.y)
        if _begins_with(x, trained.x):
            same = _same(x, trained.x) and torch.equal(index, trained.edges.index)
            if same and trained is self.graph_:
                return trained, 0
            edges = Edges(index, x.shape[0])
            return NodeGraph(x, edges, trained.classes, trained.known, trained.known_y), 0
        both = torch.cat([trained.edges.index, index + trained.nodes], dim=1)
        edges = Edges(both, trained.nodes + x.shape[0])
        union = NodeGraph(
            below(trained.x, x), edges, trained.classes, trained.known, trained.known_y
        )
        return union, trained.nodes

    def _judged(self, graph: NodeGraph, nodes: Tensor) -> Tensor:
        out = torch.zeros(len(nodes), graph.classes, device=graph.device)
        if self.learner in CANDIDATE_LEARNERS:
            is_known = torch.isin(nodes, graph.known)
            for group in (~is_known, is_known):
                if group.any():
                    hidden = graph.without(nodes[group])
                    out[group] = self.network_.scores(hidden, nodes[group]).softmax(dim=1)
            return out
        if len(nodes):
            out = self.network_.scores(graph, nodes)
        return out / out.sum(dim=1, keepdim=True)


class ForwardLinkPredictor(BaseEstimator):
    """Links by a graph network whose layers learn without backpropagation between them.

    Args:
        conv: "gcn", "sage", "gat" or a function, as for `ForwardGNN`.
        hidden: width of every layer.
        layers: number of layers.
        learner: "fl" (cross entropy on inner products), "ff" (goodness of products), "topdown"
            ("fl" where every layer also hears the one above).
        epochs, val_every, patience, lr, weight_decay, theta, alternating, test_steps, cache,
        symmetrize, device, random_state: as for `ForwardGNN`.

    Attributes:
        network_: the trained module.
        layer_auc_: AUC on the validation pairs of the prediction accumulated up to each layer (one
            number for "topdown").
    """

    def __init__(
        self,
        conv: Conv = "gcn",
        hidden: int = 128,
        layers: int = 2,
        learner: Literal["fl", "ff", "topdown"] = "fl",
        *,
        epochs: int = 1000,
        val_every: int = 2,
        patience: int = 100,
        lr: float = 1e-3,
        weight_decay: float = 5e-4,
        theta: float = 2.0,
        alternating: bool = True,
        test_steps: int = 10,
        cache: bool = True,
        symmetrize: bool = False,
        device: str = "cpu",
        random_state: int | None = None,
    ) -> None:
        self.conv, self.hidden, self.layers, self.learner = conv, hidden, layers, learner
        self.epochs, self.val_every, self.patience = epochs, val_every, patience
        self.lr, self.weight_decay, self.theta = lr, weight_decay, theta
        self.alternating, self.test_steps, self.cache = alternating, test_steps, cache
        self.symmetrize, self.device, self.random_state = symmetrize, device, random_state

    def fit(self, data: Data, val_data: Data | None = None) -> Self:
        """Learn from pairs that are linked and pairs that are not.

        Args:
            data: PyG `Data` with `x` and `edge_index`. With `edge_label_index` and `edge_label`
                (as `RandomLinkSplit` makes them) those pairs are learned; without them all links
                are learned beside as many random non-links, and 16% are kept for early stopping.
            val_data: the same with labels, for early stopping.

        Raises:
            ValueError: naming what is wrong with the input.
        """
        learner = self.begin(data, val_data)
        while not learner.done:
            learner.step()
        return self.end()

    def begin(self, data: Data, val_data: Data | None = None) -> LinkLearner:
        """What `fit` starts with: the untrained learner, to be driven by its `step()`."""
        if self.learner not in LINK_LEARNERS:
            raise ValueError(
                f"unknown learner {self.learner!r}; choose from {', '.join(LINK_LEARNERS)}"
            )
        _check_sizes(self)
        x = checked_features(data.x, self.device)
        whole = checked_edges(data.edge_index, x.shape[0], self.symmetrize)
        with seeded(self.random_state):
            if data.get("edge_label") is None:
                data, val_data = self._split(data, whole)
            train = self._pairs(data, x)
            look = None if val_data is None else self._pairs(val_data, x)
            self.network_ = LINK_LEARNERS[self.learner](self._settings(), train, look)
        self.x_, self.edges_ = x, Edges(whole.to(self.device), x.shape[0])
        return self.network_

    def end(self) -> Self:
        """What `fit` ends with, after a learner that was driven by hand; trains no more."""
        self.network_.finish()
        self.layer_auc_ = list(self.network_.layer_scores)
        return self

    def score_edges(
        self, pairs: Int[np.ndarray, "2 pairs"], data: Data | None = None
    ) -> Float[np.ndarray, " pairs"]:
        """Likelihood of a link, in (0, 1), for every pair.

        Args:
            pairs: first and second node of each pair.
            data: graph with `x` and `edge_index` whose arcs carry the messages; None takes the
                one that `fit` was given.
        """
        check_is_fitted(self, "layer_auc_")
        x, edges = self.x_, self.edges_
        if data is not None:
            x = checked_features(data.x, self.device)
            index = checked_edges(data.edge_index, x.shape[0], self.symmetrize)
            edges = Edges(index.to(self.device), x.shape[0])
        asked = checked_index(pairs, x.shape[0], "pairs").to(self.device)
        return self.network_.scores(x, edges, asked).cpu().numpy()

    def score(self, data: Data) -> float:
        """ROC-AUC on the labelled pairs of `data`, messages going through its arcs."""
        return self.evaluate(data)["auc"]

    def evaluate(self, data: Data) -> dict[str, float]:
        """ROC-AUC, average precision and NDCG on the labelled pairs of `data`."""
        scores = self.score_edges(data.edge_label_index, data)
        return link_metrics(data.edge_label.cpu(), scores)

    def _split(self, data: Data, index: Tensor) -> tuple[Data, Data]:
        split = RandomLinkSplit(
            num_val=VALIDATION_LINKS, num_test=0.0, is_undirected=is_undirected(index)
        )
        graph = Data(edge_index=index, num_nodes=data.num_nodes)
        train, validation, _ = split(graph)
        return train, validation

    def _pairs(self, data: Data, x: Features) -> LinkData:
        index = checked_edges(data.edge_index, x.shape[0], self.symmetrize)
        pairs = checked_index(data.edge_label_index, x.shape[0], "edge_label_index")
        labels = torch.as_tensor(data.edge_label).float()
        if labels.shape != pairs.shape[1:]:
            raise ValueError(f"edge_label has {len(labels)} entries for {pairs.shape[1]} pairs")
        if set(labels.unique().tolist()) != {0.0, 1.0}:
            raise ValueError("edge_label must hold both 0 (no link) and 1 (link), nothing else")
        edges = Edges(index.to(self.device), x.shape[0])
        return LinkData(x, edges, pairs.to(self.device), labels.to(self.device))

    def _settings(self) -> Settings:
        names = set(Settings.__dataclass_fields__) & set(self.get_params(deep=False))
        return Settings(**{name: getattr(self, name) for name in names})


@contextmanager
def seeded(random_state: int | None) -> Iterator[None]:
    """Draws come from this seed inside and go on as before outside; None changes nothing.

    PyG draws non-links with Python's and NumPy's global generators, weights come from PyTorch's.
    """
    if random_state is None:
        yield
        return
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(random_state)
            random.seed(random_state)
            np.random.seed(random_state)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def checked_features(x: Any, device: str = "cpu") -> Features:
    """Features as the layers take them.

    Raises:
        ValueError: if they are no matrix or hold a number that is not finite (says where).
    """
    if isinstance(x, Tensor) and x.layout != torch.strided:
        x = x.to_dense()
    if not sparse.issparse(x):
        x = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if x.ndim != 2 or x.dtype.kind not in "fiub":
        raise ValueError(f"x must be a matrix of numbers, nodes x features; got {x.ndim} axes")
    finite = np.isfinite(x.data if sparse.issparse(x) else x)
    if not finite.all():
        row = x.tocoo().row[~finite][0] if sparse.issparse(x) else np.argwhere(~finite)[0][0]
        raise ValueError(f"x holds NaN or infinity, first in the features of node {row}")
    return as_features(x, device)


def checked_index(index: Any, nodes: int, name: str) -> Int[Tensor, "2 columns"]:
    """Pairs of node numbers.

    Raises:
        ValueError: if they are no two rows of whole numbers from 0 to nodes - 1.
    """
    index = index.detach().cpu() if isinstance(index, Tensor) else torch.as_tensor(np.array(index))
    if index.ndim != 2 or index.shape[0] != 2:
        raise ValueError(f"{name} must be of shape (2, number), got {tuple(index.shape)}")
    if index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"{name} must hold whole numbers, got {index.dtype}")
    outside = (index < 0) | (index >= nodes)
    if outside.any():
        raise ValueError(
            f"{name} names node {int(index[outside][0])}, but nodes are 0 to {nodes - 1}"
        )
    return index.long()


def checked_edges(index: Any, nodes: int, symmetrize: bool) -> Int[Tensor, "2 arcs"]:
    """Arcs of a graph; warns if some lack the other direction, or adds it.

    Raises:
        ValueError: as `checked_index`.
    """
    index = checked_index(index, nodes, "edge_index")
    if is_undirected(index, num_nodes=nodes):
        return index
    if symmetrize:
        return to_undirected(index, num_nodes=nodes)
    warnings.warn(
        "the graph is directed: messages pass along the arcs only; symmetrize=True adds the other "
        "directions",
        UserWarning,
        stacklevel=4,
    )
    return index


def checked_mask(mask: Any, nodes: int, name: str) -> Bool[np.ndarray, " nodes"]:
    """One boolean per node.

    Raises:
        ValueError: if it is anything else.
    """
    mask = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if mask.shape != (nodes,) or mask.dtype != bool:
        raise ValueError(
            f"{name} must hold one boolean for each of {nodes} nodes, got {mask.dtype} of shape "
            f"{mask.shape}"
        )
    return mask


def _checked_labels(
    y: Any, train_mask: Any, val_mask: Any, nodes: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Classes, training nodes and validation nodes."""
    y = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if y.shape != (nodes,) or y.dtype.kind not in "iu":
        raise ValueError(
            f"y must hold one whole number for each of {nodes} nodes (-1 where unknown), got "
            f"{y.dtype} of shape {y.shape}"
        )
    train = checked_mask(train_mask, nodes, "train_mask")
    validation = np.zeros(nodes, dtype=bool)
    if val_mask is not None:
        validation = checked_mask(val_mask, nodes, "val_mask")
    both = np.flatnonzero(train & validation)
    if both.size:
        raise ValueError(
            f"train_mask and val_mask overlap in {both.size} nodes, first in node {both[0]}"
        )
    for mask, name in ((train, "train_mask"), (validation, "val_mask")):
        unknown = np.flatnonzero(mask & (y < 0))
        if unknown.size:
            raise ValueError(f"node {unknown[0]} is in {name}, but its class is unknown (-1)")
    return y.astype(np.int64), np.flatnonzero(train), np.flatnonzero(validation)


def _classes(
    y: Int[np.ndarray, " nodes"], train: Int[np.ndarray, " train"]
) -> tuple[Int[np.ndarray, " classes"], Int[np.ndarray, " nodes"]]:
    """The classes, and every node's as its place among them (-1 where unknown)."""
    classes = np.unique(y[y >= 0])
    missing = np.setdiff1d(classes, y[train])
    if missing.size:
        raise ValueError(
            f"class {missing[0]} has no training node: its virtual node would have no neighbour"
        )
    if len(classes) < 2:
        raise ValueError(f"there must be at least two classes, got {len(classes)}")
    return classes, np.where(y >= 0, np.searchsorted(classes, y), -1)


def _check_sizes(estimator: Any) -> None:
    for name in ("hidden", "layers", "epochs", "val_every", "patience"):
        if getattr(estimator, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(estimator, name)}")
    if estimator.test_steps <= SETTLING_STEPS:
        raise ValueError(
            f"test_steps must be more than the {SETTLING_STEPS} steps in which states settle, got "
            f"{estimator.test_steps}"
        )
    if isinstance(estimator.conv, str) and estimator.conv not in ("gcn", "sage", "gat"):
        raise ValueError(
            f"unknown conv {estimator.conv!r}; choose gcn, sage, gat or pass a function"
        )


def _begins_with(x: Features, trained: Features) -> bool:
    if x.shape[0] < trained.shape[0] or isinstance(x, SparseMatrix) != isinstance(
        trained, SparseMatrix
    ):
        return False
    return _same(_first_rows(x, trained.shape[0]), trained)


def _first_rows(x: Features, rows: int) -> Features:
    if isinstance(x, SparseMatrix):
        return SparseMatrix(x.matrix[:rows], x.device)
    return x[:rows]


def _same(x: Features, other: Features) -> bool:
    if x is other:
        return True
    if isinstance(x, SparseMatrix) and isinstance(other, SparseMatrix):
        return x.shape == other.shape and (x.matrix != other.matrix).nnz == 0
    if isinstance(x, Tensor) and isinstance(other, Tensor):
        return torch.equal(x, other)
    return False
