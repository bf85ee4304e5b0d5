"""Sparse dictionaries of a network's activations; g-SAE and its TopK base.

Shapes: rows are tokens (or samples), `features` is the width d of the activation, `units` the
size h of the dictionary. Directions are kept as rows, so `decoder[j]` is W_dec[:, j].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from peira.data.arrays import read_record, write_record
from peira.data.errors import DataError

if TYPE_CHECKING:
    from peira.explain.g_sae.faithfulness import Faithfulness
    from peira.explain.g_sae.fitting import SAERecipe
    from peira.explain.g_sae.store import ActivationStore, LossFn, Rows

Mode = Literal["additive", "product", "topk"]
MODES: tuple[Mode, ...] = get_args(Mode)
# Of the saved state (objects that change) makes the steps to train: 1, 2, ...
Steps = Callable[[Sequence[Any]], Iterable[int]]

# Rows that are encoded at once where all units of every row are needed.
CHUNK = 8192
KIND = "dictionary"


class SparseCode(NamedTuple):
    """What fires for each row.

    Attributes:
        values: (rows, k), not negative; zero where fewer than k units are positive.
        units: (rows, k), which units; a row's are distinct and in no order.
    """

    values: Float[Tensor, "rows k"]
    units: Int[Tensor, "rows k"]

    def dense(self, h: int) -> Float[Tensor, "rows units"]:
        """The same with a column for every unit."""
        empty = self.values.new_zeros(len(self.values), h)
        return empty.scatter(1, self.units, self.values)


Code = SparseCode | Tensor


class Dictionary(nn.Module):
    """Directions of activation space, how a row's coefficients are found, and how it is rebuilt.

    Every dictionary here has `encode`, `decode`, `fit`, and `dictionary(x, g)`, the reconstruction;
    x and g may have any leading dimensions there.

    Args:
        h: number of units.
        d: width of the activations; without it `fit` takes it from the data.
    """

    uses_gradient: ClassVar[bool] = False

    def __init__(self, h: int, d: int | None = None) -> None:
        super().__init__()
        if h < 1:
            raise DataError("a dictionary needs units", value=h, expected="h of 1 or more")
        self.h = h
        self.d: int | None = None
        if d is not None:
            self.build(d)

    def build(self, d: int, generator: torch.Generator | None = None) -> None:
        """Make the parameters: random directions of length 1, the encoder equal to the decoder."""
        directions = F.normalize(torch.randn(self.h, d, generator=generator), dim=1)
        self.d = d
        self.encoder = nn.Parameter(directions.clone())
        self.decoder = nn.Parameter(directions)
        self.b_enc = nn.Parameter(torch.zeros(self.h))
        self.b_pre = nn.Parameter(torch.zeros(d))
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(d))

    def encode(self, x: Float[Tensor, "rows d"], g: Float[Tensor, "rows d"] | None = None) -> Code:
        """Coefficients of the units: a `SparseCode`, or (rows, units)."""
        raise NotImplementedError

    def decode(self, code: Code) -> Float[Tensor, "rows d"]:
        """Sum of the directions that fire, and the bias."""
        if isinstance(code, Tensor):
            return torch.addmm(self.b_pre, code, self.decoder)
        # Gathers k of h directions; neither a dense code nor its product is made.
        found = F.embedding_bag(
            code.units, self.decoder, per_sample_weights=code.values, mode="sum"
        )
        return found + self.b_pre

    def forward(
        self, x: Float[Tensor, "... d"], g: Float[Tensor, "... d"] | None = None
    ) -> Float[Tensor, "... d"]:
        """The reconstruction of activations, given their gradients where the method uses them."""
        rows = x.reshape(-1, x.shape[-1])
        code = self.encode(rows, None if g is None else g.reshape(rows.shape))
        return self.decode(code).reshape(x.shape)

    def training_loss(
        self, x: Float[Tensor, "rows d"], g: Float[Tensor, "rows d"] | None, recipe: SAERecipe
    ) -> Float[Tensor, ""]:
        """Loss of one batch, whose rows have mean squared deviation 1."""
        raise NotImplementedError

    def rescale(self, factor: float) -> None:
        """Turn a dictionary of x into one of `factor` x: all maps are positively homogeneous."""
        with torch.no_grad():
            self.b_enc *= factor
            self.b_pre *= factor
            self.mean *= factor

    def least_batch(self, recipe: SAERecipe) -> None:
        """Raise `DataError` where the recipe's batches cannot train this dictionary."""

    def fit(
        self,
        x: Rows | ActivationStore,
        g: Rows | None = None,
        recipe: SAERecipe | None = None,
        generator: torch.Generator | None = None,
        steps: Steps | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Learn the dictionary of a set of activations.

        Args:
            x: (rows, d) tensor or array, also memory-mapped, or an `ActivationStore`.
            g: gradient of the summed loss by each row of x, same shape, in any unit.
            recipe: optimiser, batch and budget.
            generator: draws the directions and the batches.
            steps: gives the steps to make, default 1 ... `recipe.steps`.
            device: where to train; where x is, without.

        Raises:
            DataError: not (rows, d) floating-point numbers, one that is not finite (row and column
                are named), x and g of different shape, no g although the method needs one, a g
                that is zero everywhere, or a batch too small to tell which units are dead.
        """
        from peira.explain.g_sae.fitting import fit

        fit(self, x, g, recipe, generator, steps, device)
        return self

    def faithfulness(
        self,
        model: nn.Module,
        site: str,
        batches: Iterable[tuple[Tensor, Tensor]],
        loss_fn: LossFn | None = None,
    ) -> Faithfulness:
        """What the network loses when its activations are replaced; see `faithfulness`."""
        from peira.explain.g_sae.faithfulness import faithfulness

        return faithfulness(self, model, site, batches, loss_fn)

    def steer(
        self,
        model: nn.Module,
        site: str,
        unit: int,
        strength: float,
        where: Literal["all", "last"] = "all",
    ) -> AbstractContextManager[None]:
        """While the block runs, x becomes x + `strength` times the unit's direction at the site.

        Raises `DataError` for a unit that the dictionary lacks, ValueError for the site.
        """
        from peira.explain.g_sae.faithfulness import steered

        if not 0 <= unit < self.h:
            raise DataError("no such unit", value=unit, expected=f"0 to {self.h - 1}")
        return steered(model, site, strength * self.decoder[unit].detach(), where)

    def codes(self, x: Rows | ActivationStore, g: Rows | None = None) -> Iterator[tuple[int, Code]]:
        """First row and code of a chunk of rows, chunk after chunk, without gradients."""
        from peira.explain.g_sae.fitting import checked_rows
        from peira.explain.g_sae.store import take

        has_gradients = g is not None or getattr(x, "gradients", None) is not None
        rows, gradients, unit = checked_rows(x, g, self.uses_gradient and has_gradients)
        for first in range(0, len(rows), CHUNK):
            part = slice(first, first + CHUNK)
            seen = take(rows, part, self.decoder)
            hint = None if gradients is None else take(gradients, part, self.decoder) * unit
            with torch.no_grad():
                code = self.encode(seen, hint)
            yield first, code

    def firing(self, x: Rows | ActivationStore, g: Rows | None = None) -> Float[Tensor, " units"]:
        """Share of the rows on which each unit fires."""
        counts, total = torch.zeros(self.h, dtype=torch.float64), 0
        for _, code in self.codes(x, g):
            dense = code.dense(self.h) if isinstance(code, SparseCode) else code
            counts += (dense != 0).sum(0).double().cpu()
            total += len(dense)
        return counts / total

    def top_examples(
        self, unit: int, x: Rows | ActivationStore, g: Rows | None = None, count: int = 10
    ) -> list[tuple[int, float]]:
        """Rows of x on which a unit fires most: (row, value), largest first, positive ones only.

        With an `ActivationStore`, `store.places[row]` says which input and position it was.
        """
        if not 0 <= unit < self.h:
            raise DataError("no such unit", value=unit, expected=f"0 to {self.h - 1}")
        best: list[tuple[int, float]] = []
        for first, code in self.codes(x, g):
            dense = code.dense(self.h) if isinstance(code, SparseCode) else code
            values, rows = dense[:, unit].topk(min(count, len(dense)))
            best += [
                (first + row, value)
                for row, value in zip(rows.tolist(), values.tolist(), strict=True)
                if value > 0
            ]
            best = sorted(best, key=lambda pair: -pair[1])[:count]
        return best

    def about(self) -> dict[str, Any]:
        """Settings that make an empty dictionary of this kind."""
        return {"kind": type(self).__name__, "h": self.h, "d": self.d}

    def save(self, path: str | Path) -> None:
        """Write the dictionary to a .safetensors file, with its settings in the header."""
        if self.d is None:
            raise DataError("the dictionary was not fitted")
        write_record(Path(path), KIND, self.state_dict(), self.about())


class GSAE(Dictionary):
    """Gradient sparse autoencoder (Olmo et al. 2025, arXiv 2411.10397).

    z = ReLU(W_enc (x - b_pre) + b_enc) are the activations of all units, and
    v_j = |W_dec[:, j] . g| says how fast the loss changes along unit j, so that z_j v_j is, to
    first order, how much the loss changes when the unit is left out. The k units of largest score
    fire, each with its own z: gradients select and never enter a value, nor does training
    differentiate through the selection. Scores:

    - "additive": z_j + beta z_j v_j
    - "product": z_j v_j, the limit of large beta
    - "topk": z_j, the k-sparse autoencoder of Gao et al. (2024, arXiv 2406.04093)

    Without g, at inference, every mode selects as "topk" does. A gradient of the loss knows the
    label: report what selection without it, and with shuffled gradients, does, as `faithfulness`
    does.

    Args:
        h: number of units.
        k: units that fire at once.
        beta: weight of the gradient in "additive"; gradients count in units of their
            root-mean-square norm over the training set, kept as `gradient_scale`.
        mode: the score.
        d: width of the activations; without it `fit` takes it from the data.

    Raises:
        DataError: k outside 1 to h, beta negative, an unknown mode.
    """

    def __init__(
        self,
        h: int,
        k: int = 32,
        beta: float = 10.0,
        mode: Mode = "additive",
        d: int | None = None,
    ) -> None:
        if not 1 <= k <= h:
            raise DataError("k units of h fire", value=k, expected=f"1 to h = {h}")
        if not beta >= 0:
            raise DataError("beta is negative", value=beta, expected="0 or more")
        if mode not in MODES:
            raise DataError("unknown mode", value=mode, expected=", ".join(MODES))
        self.k, self.beta, self.mode = k, beta, mode
        super().__init__(h, d)

    @property
    def uses_gradient(self) -> bool:  # type: ignore[override]
        """Whether gradients take part in the selection."""
        return self.mode != "topk"

    def build(self, d: int, generator: torch.Generator | None = None) -> None:
        super().build(d, generator)
        self.gradient_scale: Tensor
        self.idle: Tensor
        self.register_buffer("gradient_scale", torch.ones(()))
        # Batches since each unit fired last.
        self.register_buffer("idle", torch.zeros(self.h, dtype=torch.long))

    def selecting(self, mode: Mode, beta: float | None = None) -> GSAE:
        """The same dictionary with another score; the parameters are shared."""
        other = copy.copy(self)
        other.mode, other.beta = mode, self.beta if beta is None else beta
        return other

    def activations(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows units"]:
        """z of all units, before any selection."""
        # (x - b_pre) W^T = x W^T - W b_pre, which needs no centred copy of x.
        bias = self.b_enc - self.encoder @ self.b_pre
        return torch.addmm(bias, x, self.encoder.T).relu_()

    def influence(self, g: Float[Tensor, "rows d"]) -> Float[Tensor, "rows units"]:
        """v: change of the loss per unit of length along each direction, over `gradient_scale`."""
        return (g / self.gradient_scale @ self.decoder.T).abs_()

    def scores(
        self, z: Float[Tensor, "rows units"], g: Float[Tensor, "rows d"] | None = None
    ) -> Float[Tensor, "rows units"]:
        """What the selection goes by."""
        if g is None or self.mode == "topk":
            return z
        if self.mode == "product":
            return self.influence(g).mul_(z)
        return self.influence(g).mul_(self.beta).add_(1).mul_(z)

    @torch.no_grad()
    def select(
        self, x: Float[Tensor, "rows d"], g: Float[Tensor, "rows d"] | None = None
    ) -> Int[Tensor, "rows k"]:
        """The k units that fire on each row; nothing is differentiated through this."""
        return self.scores(self.activations(x), g).topk(self.k, sorted=False).indices

    def encode(
        self, x: Float[Tensor, "rows d"], g: Float[Tensor, "rows d"] | None = None
    ) -> SparseCode:
        """The k units selected on each row, with their own activations.

        Args:
            x: activations.
            g: gradient of the loss by x, in the unit of those at training; None selects by z.
        """
        if torch.is_grad_enabled():
            units = self.select(x, g)
            return SparseCode(self._values(x, units), units)
        z = self.activations(x)
        units = self.scores(z, g).topk(self.k, sorted=False).indices
        return SparseCode(z.gather(1, units), units)

    def _values(
        self, x: Float[Tensor, "rows d"], units: Int[Tensor, "rows k"]
    ) -> Float[Tensor, "rows k"]:
        """z of the selected units alone: the backward pass touches k rows of W_enc, not h."""
        rows = F.embedding(units, self.encoder)
        # Also for the bias: the derivative of plain indexing sorts all indices.
        bias = F.embedding(units, self.b_enc[:, None]).squeeze(-1)
        return ((rows * (x - self.b_pre)[:, None]).sum(-1) + bias).relu()

    def training_loss(
        self, x: Float[Tensor, "rows d"], g: Float[Tensor, "rows d"] | None, recipe: SAERecipe
    ) -> Float[Tensor, ""]:
        """Normalised squared error and AuxK; counts how long each unit has been silent."""
        code = self.encode(x, g)
        error = x - self.decode(code)
        self._note(code)
        loss = error.square().sum(1).mean()
        dead = (self.idle >= recipe.dead_after).nonzero().squeeze(1)
        if len(dead) and recipe.aux_weight:
            loss = loss + recipe.aux_weight * self._auxiliary(x, error.detach(), dead)
        return loss

    def _note(self, code: SparseCode) -> None:
        fired = torch.where(code.values > 0, 0, torch.iinfo(torch.long).max)
        self.idle.add_(1).scatter_reduce_(0, code.units.flatten(), fired.flatten(), "amin")

    def _auxiliary(
        self, x: Float[Tensor, "rows d"], error: Float[Tensor, "rows d"], dead: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        """AuxK (Gao et al. 2024, appendix A.2): dead units rebuild what the others left."""
        z = (F.linear(x - self.b_pre, self.encoder[dead]) + self.b_enc[dead]).relu()
        most = min(512, max(1, x.shape[1] // 2), len(dead))
        if most < len(dead):
            values, place = z.topk(most, sorted=False)
            z = torch.zeros_like(z).scatter(1, place, values)
        rest = (error - z @ self.decoder[dead]).square().sum(1).mean()
        # No residual, no dead unit that could help: 0 / 0 in the published formula.
        spread = (error - error.mean(0)).square().sum(1).mean()
        return rest / spread.clamp_min(torch.finfo(spread.dtype).tiny)

    def least_batch(self, recipe: SAERecipe) -> None:
        most = recipe.batch * self.k * recipe.dead_after
        if most < self.h:
            raise DataError(
                f"{recipe.dead_after} batches of {recipe.batch} rows fire {most} units at most, so "
                "units would count as dead that had no chance",
                value=recipe.batch,
                expected=f"a batch of {-(-self.h // (self.k * recipe.dead_after))} rows or more",
            )

    def dead(self, recipe: SAERecipe | None = None) -> int:
        """Units that did not fire in the last `dead_after` batches of training."""
        from peira.explain.g_sae.fitting import SAERecipe

        return int((self.idle >= (recipe or SAERecipe()).dead_after).sum())

    def about(self) -> dict[str, Any]:
        return {**super().about(), "k": self.k, "beta": self.beta, "mode": self.mode}


def load_dictionary(path: str | Path) -> Dictionary:
    """Read a dictionary written by `save`.

    Raises `DataError` for a file that is absent, of another format, or no dictionary.
    """
    from peira.explain.g_sae.baselines import GatedSAE, JumpReLUSAE, PCADictionary, ReLUSAE

    kinds = {kind.__name__: kind for kind in (GSAE, ReLUSAE, GatedSAE, JumpReLUSAE, PCADictionary)}
    path = Path(path)
    tensors, about = read_record(path, KIND)
    try:
        made: Dictionary = kinds[about.pop("kind")](**about)
        made.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        why = str(error).split("\n")[0]
        raise DataError(
            f"not a dictionary ({type(error).__name__}: {why})", path=path,
            expected="a file written by `peira use g-sae fit` or `save`",
        ) from error  # fmt: skip
    return made
