"""Case-based reasoning through prototypes: a classifier whose explanation is its computation.

Li, Liu, Chen, Rudin, "Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network
that Explains Its Predictions", AAAI 2018, arXiv 1710.04806.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from peira.data import DataError, picture_tensors, read_record, write_record
from peira.explain.prototypes.baselines import GLVQ, with_centres
from peira.explain.prototypes.elastic import ElasticDeformation
from peira.explain.prototypes.explanation import contributions, deletion_test, leads, nearest
from peira.explain.prototypes.model import (
    LAMBDAS,
    Lambdas,
    PrototypeNetwork,
    Terms,
    conv_autoencoder,
    mlp_autoencoder,
    objective,
    squared_distances,
)
from peira.explain.prototypes.training import Recipe, training
from peira.nn import evaluating, mlp

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "GLVQ",
    "ElasticDeformation",
    "PrototypeClassifier",
    "PrototypeNetwork",
    "Recipe",
    "Terms",
    "contributions",
    "conv_autoencoder",
    "deletion_test",
    "leads",
    "mlp_autoencoder",
    "objective",
    "squared_distances",
    "training",
    "with_centres",
]

# Hidden units of the decoder that a person's own encoder gets when none is given.
DECODER_WIDTH = 256
# Inputs that are encoded at once outside training.
CHUNK = 512
# What a saved model is, and the arrays it holds beside its network.
KIND = "prototype model"
KEPT = ("nearest_training_", "nearest_examples_", "low_", "range_")

Array = Float[np.ndarray, "..."]
Watch = Callable[[range], Iterable[int]]


class PrototypeClassifier(ClassifierMixin, BaseEstimator):
    """Classify pictures or rows of a table by their distances to learned prototypes.

    An autoencoder's latent space holds m prototypes; the logits are D W, squared distances times
    one small table of weights, without bias. Minimised is
    20 cross entropy + reconstruction + R1 + R2, where R1 keeps each prototype near an encoded
    input of the batch and R2 each encoded input near a prototype. The prototypes decode to
    pictures, and what each adds to a logit adds up to it exactly.

    X is pictures, (n, height, width) or (n, channels, height, width), bytes or in [0, 1]; or a
    table (n, columns), whose columns are scaled to [0, 1] by the training set's range. Pictures
    are computed in single precision, tables in double.

    Args:
        n_prototypes: m; more than classes is meant, and none belongs to a class beforehand.
        lambdas: weights of cross entropy, summed squared reconstruction error, R1 and R2.
        encoder: "conv", "mlp", or your own module from pictures or rows to latents of any shape,
            whose weights are where training starts. Default by the data: conv for pictures.
            Prototypes of your own encoder start at encoded training examples, because only you
            know its scale; otherwise from U[0, 1), as published.
        decoder: your own module from those latents back to pictures or rows in [0, 1]; default
            what mirrors the encoder, or a fully connected one for an encoder of yours.
        epochs, batch_size, learning_rate: of Adam; batches are always full. The published 1500
            epochs are 330,000 steps on MNIST's 55,000 pictures.
        elastic: deform every training batch of pictures: True scales the published field to the
            pictures' side, a pair gives sigma and alpha in pixels.
        random_state: seed of all that is drawn.
        device: of PyTorch; default the accelerator where there is one.

    Attributes:
        classes_: labels, in the order of the columns of W.
        network_: the trained `PrototypeNetwork`.
        prototype_class_: label of each prototype: the most negative weight of its row.
        nearest_training_: number of the training example whose latent is nearest to each
            prototype.
        nearest_examples_: those examples, as X had them.
        kind_, sample_shape_: "pictures" or "table", and the shape of one input.
        low_, range_: of a table's columns in training.
    """

    def __init__(
        self,
        n_prototypes: int = 15,
        lambdas: Sequence[float] = LAMBDAS,
        encoder: Literal["conv", "mlp"] | nn.Module | None = None,
        decoder: nn.Module | None = None,
        epochs: int = 1500,
        batch_size: int = 250,
        learning_rate: float = 0.002,
        elastic: bool | tuple[float, float] = True,
        random_state: int | None = None,
        device: str | None = None,
    ) -> None:
        self.n_prototypes, self.lambdas = n_prototypes, lambdas
        self.encoder, self.decoder = encoder, decoder
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.elastic, self.random_state, self.device = elastic, random_state, device

    def fit(self, X: Array, y: Any, watch: Watch | None = None) -> Self:
        """Learn encoder, decoder, prototypes and weights together.

        Args:
            X: pictures or a table.
            y: labels (n,) of any kind.
            watch: wraps the range of steps, such as `rich.progress.track`.

        Raises:
            ValueError: one class only; values that are missing; pixels outside [0, 1]; pictures
                too small; fewer than one prototype; batches of fewer than two inputs, where R1
                means nothing; an encoder and decoder that do not fit the data or each other.
        """
        lambdas = self._settings()
        inputs, labels = self._training_set(X, y)
        seed = int(check_random_state(self.random_state).randint(2**31))
        generator = torch.Generator().manual_seed(seed)
        self.network_ = self._network(inputs, generator)
        recipe = Recipe(self.epochs, self.batch_size, self.learning_rate)
        for _ in training(
            self.network_,
            lambda x, targets: objective(self.network_, x, targets).total(lambdas),
            inputs,
            torch.from_numpy(labels).to(inputs.device),
            recipe,
            generator,
            self._deformation(generator),
            lambda total, _: (watch or iter)(range(1, total + 1)),
        ):
            pass
        self._remember(inputs, X)
        return self

    def predict_proba(self, X: Array) -> Float[np.ndarray, "n classes"]:
        """Softmax of the logits."""
        return torch.softmax(self._logits(X), dim=1).numpy()

    def predict(self, X: Array) -> np.ndarray:
        """Label of the largest logit."""
        logits = self._logits(X)
        return self.classes_[logits.argmax(dim=1).numpy()]

    def distances(self, X: Array) -> Float[np.ndarray, "n m"]:
        """Squared distance of each input to each prototype in the latent space."""
        return self._distances(X).numpy()

    @property
    def prototypes_(self) -> Array:
        """The decoded prototypes, shaped as X and in its units (pictures: in [0, 1])."""
        check_is_fitted(self)
        with evaluating(self.network_):
            decoded = self.network_.pictures().cpu().numpy()
        if self.kind_ == "table":
            return decoded * self.range_ + self.low_
        return decoded.reshape(-1, *self.sample_shape_)

    def explain(self, X: Array) -> pd.DataFrame:
        """What each prediction is the sum of: one row per input and prototype, nearest first.

        Columns: `sample`, `predicted`, `prototype`, `prototype_class`, `distance` (squared),
        `lead` (what the prototype adds to the lead of the predicted class over the second),
        `nearest_training` (number of the training example nearest to the prototype), and for every
        class `weight[class]` and `contribution[class]`, which over the prototypes of a sample add
        up to its logit.
        """
        import pandas as pd

        distances = self._distances(X)
        weight = self.network_.weight.detach().cpu()
        parts, lead = contributions(distances, weight), leads(distances, weight)
        predicted = self.classes_[parts.sum(dim=1).argmax(dim=1).numpy()]
        count, m = distances.shape
        table = {
            "sample": np.repeat(np.arange(count), m),
            "predicted": np.repeat(predicted, m),
            "prototype": np.tile(np.arange(m), count),
            "prototype_class": np.tile(self.prototype_class_, count),
            "distance": distances.flatten().numpy(),
            "lead": lead.flatten().numpy(),
            "nearest_training": np.tile(self.nearest_training_, count),
        }
        for k, name in enumerate(self.classes_):
            table[f"weight[{name}]"] = np.tile(weight[:, k].numpy(), count)
            table[f"contribution[{name}]"] = parts[:, :, k].flatten().numpy()
        return pd.DataFrame(table).sort_values(["sample", "distance"], ignore_index=True)

    def save(self, path: str | Path) -> None:
        """Write weights as safetensors, settings as JSON in their header; no pickles."""
        check_is_fitted(self)
        about = {
            "settings": {
                name: value
                for name, value in self.get_params().items()
                if name not in ("encoder", "decoder", "device")
            },
            "encoder": self.encoder if isinstance(self.encoder, str | None) else "own",
            "decoder": None if self.decoder is None else "own",
            "kind": self.kind_,
            "sample_shape": self.sample_shape_,
            "latent_shape": self.network_.latent_shape,
            "classes": self.classes_.tolist(),
            "labels": str(self.classes_.dtype),
            "columns": getattr(self, "feature_names_in_", np.empty(0)).tolist(),
        }
        tensors = {f"network.{name}": w for name, w in self.network_.state_dict().items()}
        for name in KEPT:
            if hasattr(self, name):
                tensors[name] = torch.from_numpy(np.ascontiguousarray(getattr(self, name)))
        write_record(Path(path), KIND, tensors, json.loads(json.dumps(about, default=_plain)))

    @classmethod
    def load(
        cls,
        path: str | Path,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        device: str | None = None,
    ) -> Self:
        """Read what `save` wrote.

        Args:
            path: the file.
            encoder, decoder: modules of the same shape where the saved model had its own; their
                weights come from the file.
            device: of PyTorch.

        Raises `DataError` for a file that is none of these, and for modules that do not fit it.
        """
        path = Path(path)
        tensors, about = read_record(path, KIND)
        own = {"encoder": encoder, "decoder": decoder}
        for name, module in own.items():
            if about[name] == "own" and module is None:
                raise DataError(f"its {name} was your own: give it again", path=path)
        # JSON has no tuples.
        settings = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in about["settings"].items()
        }
        model = cls(
            **settings,
            encoder=encoder if about["encoder"] == "own" else about["encoder"],
            decoder=decoder if about["decoder"] == "own" else None,
            device=device,
        )
        model._restore(about, tensors, path)
        return model

    def _restore(self, about: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> None:
        """Take over what was learned from a file."""
        self.kind_, self.sample_shape_ = about["kind"], tuple(about["sample_shape"])
        self.classes_ = np.array(about["classes"], dtype=about["labels"])
        if about["columns"]:
            self.feature_names_in_ = np.array(about["columns"], dtype=object)
        if self.kind_ == "table":
            self.n_features_in_ = self.sample_shape_[0]
        for name in KEPT:
            if name in tensors:
                setattr(self, name, tensors[name].numpy())
        pair = self._autoencoder(about["latent_shape"], torch.Generator())
        network = PrototypeNetwork(
            *pair, about["latent_shape"], self.n_prototypes, len(self.classes_)
        ).to(self._device(), self._precision())
        weights = {
            name.removeprefix("network."): tensor
            for name, tensor in tensors.items()
            if name.startswith("network.")
        }
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise DataError(
                f"your modules are not those it was saved with ({error})", path
            ) from error
        self.network_ = network
        self.prototype_class_ = self.classes_[network.prototype_classes().cpu().numpy()]

    def _settings(self) -> Lambdas:
        if self.n_prototypes < 1:
            raise DataError("too few prototypes", value=self.n_prototypes, expected="at least 1")
        if self.batch_size < 2:
            raise DataError(
                "batches too small: R1 is the nearest input of the batch",
                value=self.batch_size,
                expected="at least 2",
            )
        if self.epochs < 1 or not self.learning_rate > 0:
            raise DataError(
                "epochs and learning rate must be positive",
                value=(self.epochs, self.learning_rate),
            )
        lambdas = tuple(float(weight) for weight in self.lambdas)
        if len(lambdas) != 4 or not all(weight >= 0 for weight in lambdas) or not any(lambdas):
            raise DataError(
                "four weights are needed", value=self.lambdas, expected="4 numbers, none negative"
            )
        return lambdas  # type: ignore[return-value]

    def _training_set(self, X: Array, y: Any) -> tuple[Float[Tensor, "n ..."], np.ndarray]:
        """Inputs on the device, labels as numbers; sets what is known of the data."""
        if _dimensions(X) in (3, 4):
            y = column_or_1d(y, warn=True)
            inputs = self._pictures(X, reset=True)
            if len(y) != len(inputs):
                raise DataError(f"{len(inputs)} pictures but {len(y)} labels")
        else:
            X, y = validate_data(self, X, y, dtype=np.float64)
            self.kind_, self.sample_shape_ = "table", (X.shape[1],)
            self.low_ = X.min(axis=0)
            spread = X.max(axis=0) - self.low_
            self.range_ = np.where(spread > 0, spread, 1.0)
            inputs = torch.from_numpy((X - self.low_) / self.range_).to(self._device())
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                "only one class", value=self.classes_[0].item(), expected="at least two classes"
            )
        if self.n_prototypes < len(self.classes_):
            warnings.warn(
                f"{self.n_prototypes} prototypes for {len(self.classes_)} classes: some classes "
                "will have none of their own",
                UserWarning,
                stacklevel=3,
            )
        return inputs, labels

    def _pictures(self, X: Array, reset: bool = False) -> Float[Tensor, "n c h w"]:
        X = check_array(X, dtype=None, allow_nd=True, ensure_min_samples=1)
        shape = X.shape[1:]
        if reset:
            self.kind_, self.sample_shape_ = "pictures", shape
        elif shape != self.sample_shape_:
            raise DataError(
                "pictures of another size", value=shape, expected=f"{self.sample_shape_}"
            )
        if len(shape) == 3 and shape[0] > 4 >= shape[2]:
            raise DataError(
                "channels come last", value=shape, expected="(n, channels, height, width)"
            )
        if X.dtype != np.uint8:
            low, high = float(X.min()), float(X.max())
            if low < 0 or high > 1:
                raise DataError(
                    "pixels outside [0, 1], which the sigmoid decoder cannot give",
                    value=f"{low:g} to {high:g}",
                    expected="bytes, or numbers in [0, 1]",
                )
        inputs = picture_tensors(X)
        return (inputs[:, None] if inputs.ndim == 3 else inputs).to(self._device())

    def _inputs(self, X: Array) -> Float[Tensor, "n ..."]:
        """Inputs of a fitted model."""
        check_is_fitted(self)
        if self.kind_ == "pictures":
            if _dimensions(X) not in (3, 4):
                raise DataError(
                    "not pictures", value=np.shape(X), expected=f"(n, *{self.sample_shape_})"
                )
            return self._pictures(X)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return torch.from_numpy((X - self.low_) / self.range_).to(self._device())

    def _device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def _precision(self) -> torch.dtype:
        return torch.float32 if self.kind_ == "pictures" else torch.float64

    def _input_shape(self) -> tuple[int, ...]:
        """Shape of one input of the network: pictures always have channels."""
        grey = self.kind_ == "pictures" and len(self.sample_shape_) == 2
        return (1, *self.sample_shape_) if grey else self.sample_shape_

    def _encoder(self, generator: torch.Generator) -> tuple[nn.Module, nn.Module | None]:
        """The encoder, and the decoder that mirrors it where there is one."""
        shape = self._input_shape()
        if isinstance(self.encoder, nn.Module):
            return copy.deepcopy(self.encoder), None
        kind = self.encoder or ("conv" if self.kind_ == "pictures" else "mlp")
        if kind == "conv":
            if self.kind_ == "table":
                raise DataError(
                    "encoder='conv' needs pictures", value=f"a table of {shape[0]} columns",
                    expected="(n, height, width) or (n, channels, height, width)",
                )  # fmt: skip
            return conv_autoencoder(shape, generator=generator)  # type: ignore[arg-type]
        if kind != "mlp":
            raise DataError("unknown encoder", value=kind, expected="'conv', 'mlp' or a module")
        encoder, decoder = mlp_autoencoder(math.prod(shape), generator=generator)
        if self.kind_ == "pictures":
            encoder = nn.Sequential(nn.Flatten(), *encoder)
            decoder = nn.Sequential(*decoder, nn.Unflatten(1, shape))
        return encoder, decoder

    def _autoencoder(
        self, latent_shape: Sequence[int] | None, generator: torch.Generator
    ) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder; the shape of a latent is needed for an encoder of one's own."""
        encoder, decoder = self._encoder(generator)
        if self.decoder is not None:
            return encoder, copy.deepcopy(self.decoder)
        if decoder is None:
            shape = self._input_shape()
            widths = [math.prod(latent_shape or ()), DECODER_WIDTH, math.prod(shape)]
            decoder = nn.Sequential(nn.Flatten(), mlp(widths), nn.Sigmoid(), nn.Unflatten(1, shape))
        return encoder, decoder

    def _network(
        self, inputs: Float[Tensor, "n ..."], generator: torch.Generator
    ) -> PrototypeNetwork:
        few = inputs[:2]
        own = isinstance(self.encoder, nn.Module)
        latent_shape = self._latent_shape(copy.deepcopy(self.encoder), few) if own else None
        # The decoder of an own encoder is drawn by PyTorch's global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            encoder, decoder = self._autoencoder(latent_shape, generator)
        encoder, decoder = (part.to(inputs.device, inputs.dtype) for part in (encoder, decoder))
        latent_shape = self._latent_shape(encoder, few)
        network = PrototypeNetwork(
            encoder, decoder, latent_shape, self.n_prototypes, len(self.classes_), generator
        ).to(inputs.device, inputs.dtype)
        self._check_decoder(network, few)
        if own:
            rows = torch.randint(len(inputs), (self.n_prototypes,), generator=generator)
            if self.n_prototypes <= len(inputs):
                rows = torch.randperm(len(inputs), generator=generator)[: self.n_prototypes]
            with evaluating(network):
                network.prototypes.copy_(network.encode(inputs[rows.to(inputs.device)]))
        return network

    def _latent_shape(self, encoder: Any, few: Float[Tensor, "2 ..."]) -> tuple[int, ...]:
        try:
            with evaluating(encoder.to(few.device, few.dtype)):
                return tuple(encoder(few).shape[1:])
        # Whatever a person's own module raises is about its shapes.
        except Exception as error:
            raise DataError(
                f"the encoder fails on an input ({type(error).__name__}: {error})",
                value=tuple(few.shape),
            ) from error

    def _check_decoder(self, network: PrototypeNetwork, few: Float[Tensor, "2 ..."]) -> None:
        try:
            with evaluating(network):
                shape = tuple(network.decode(network.encode(few)).shape)
        except Exception as error:
            raise DataError(
                f"the decoder fails on a latent ({type(error).__name__}: {error})",
                value=(len(few), *network.latent_shape),
            ) from error
        if shape != tuple(few.shape):
            raise DataError(
                "the decoder does not give back the shape of its input", value=shape,
                expected=f"{tuple(few.shape)}",
            )  # fmt: skip

    def _deformation(self, generator: torch.Generator) -> ElasticDeformation | None:
        if self.kind_ == "table" or self.elastic is False:
            return None
        if self.elastic is True:
            return ElasticDeformation.fitting(*self.sample_shape_[-2:], generator=generator)
        sigma, alpha = self.elastic
        return ElasticDeformation(sigma, alpha, generator)

    def _remember(self, inputs: Float[Tensor, "n ..."], X: Array) -> None:
        """What the prototypes stand for: their classes and nearest training examples."""
        network = self.network_
        self.prototype_class_ = self.classes_[network.prototype_classes().cpu().numpy()]
        latents = self._latents(inputs)
        self.nearest_training_ = nearest(network.prototypes.detach(), latents)[1].cpu().numpy()
        self.nearest_examples_ = np.asarray(X)[self.nearest_training_]

    def _latents(self, inputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n q"]:
        with evaluating(self.network_):
            return torch.cat([self.network_.encode(part) for part in inputs.split(CHUNK)])

    def _distances(self, X: Array) -> Float[Tensor, "n m"]:
        latents = self._latents(self._inputs(X))
        return squared_distances(latents, self.network_.prototypes.detach()).cpu()

    def _logits(self, X: Array) -> Float[Tensor, "n classes"]:
        return self._distances(X) @ self.network_.weight.detach().cpu()


def _dimensions(X: Any) -> int:
    """Of anything that turns into an array; tables keep their columns' names for later checks."""
    return len(X.shape) if hasattr(X, "shape") else np.asarray(X).ndim


def _plain(value: Any) -> Any:
    """A setting as JSON has it: NumPy's numbers are numbers, a generator is none."""
    return value.tolist() if hasattr(value, "tolist") else None
