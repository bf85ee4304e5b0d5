"""Pictures of a fitted classifier: its prototypes, and why one input got its class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from peira.engine.figures import GREY, INK, slide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from peira.explain.prototypes.method import PrototypeClassifier

PER_LINE = 8


def prototype_sheet(model: PrototypeClassifier) -> Figure:
    """Each decoded prototype beside its nearest training example, by class.

    Of a table: one line of scaled values for each prototype.
    """
    decoded = model.prototypes_
    order = np.argsort(model.prototype_class_, kind="stable")
    if model.kind_ == "table":
        return _table_sheet(model, order)
    lines = -(-len(order) // PER_LINE)
    figure = slide(1.5 * PER_LINE, 0.6 + 1.15 * lines)
    grid = figure.subplots(lines, PER_LINE, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, j in zip(grid, order, strict=False):
        pair = [_pixels(decoded[j]), _pixels(_unit(model.nearest_examples_[j]))]
        gap = np.ones_like(pair[0][:, :1])
        _show(axes, np.concatenate([pair[0], gap, pair[1]], axis=1))
        axes.set_title(
            f"{j}: class {model.prototype_class_[j]}\nrow {model.nearest_training_[j] + 1}",
            fontsize=9, color=INK,
        )  # fmt: skip
    figure.suptitle(
        "Each prototype decoded (left) and the training example nearest to it (right)",
        x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK,
    )  # fmt: skip
    return figure


def explanation_sheet(
    model: PrototypeClassifier, x: Float[np.ndarray, "..."], top: int = 6
) -> Figure:
    """One picture and the prototypes nearest to it, with distance x weight = contribution.

    Args:
        model: fitted to pictures.
        x: one picture, as X had them.
        top: prototypes to show.
    """
    table = model.explain(x[None]).head(top)
    predicted = table["predicted"].iloc[0]
    logit = model.explain(x[None])[f"contribution[{predicted}]"].sum()
    decoded = model.prototypes_
    figure = slide(1.6 * (len(table) + 1), 2.6)
    grid = figure.subplots(1, len(table) + 1, squeeze=False).ravel()
    _show(grid[0], _pixels(_unit(x)))
    grid[0].set_title(f"input\nclass {predicted}\nlogit {logit:.3g}", fontsize=9, color=INK)
    for axes, row in zip(grid[1:], table.to_dict("records"), strict=True):
        _show(axes, _pixels(decoded[row["prototype"]]))
        axes.set_title(
            f"prototype {row['prototype']}: {row['prototype_class']}\n"
            f"{row['distance']:.3g} x {row[f'weight[{predicted}]']:.3g}\n"
            f"= {row[f'contribution[{predicted}]']:.3g}; lead {row['lead']:+.2g}",
            fontsize=9, color=INK,
        )  # fmt: skip
    figure.suptitle(
        f"Distance x weight = contribution to class {predicted}, nearest of "
        f"{len(decoded)} prototypes", x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK,
    )  # fmt: skip
    return figure


def _table_sheet(model: PrototypeClassifier, order: np.ndarray) -> Figure:
    names = list(getattr(model, "feature_names_in_", range(model.n_features_in_)))
    scaled = (model.prototypes_ - model.low_) / model.range_
    figure = slide(max(6.0, 2.5 + 0.45 * len(names)), 1.5 + 0.3 * len(order))
    axes = figure.subplots()
    image = axes.imshow(scaled[order], cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(names)), [str(name) for name in names], rotation=60, ha="right")
    axes.set_yticks(range(len(order)), [f"{j}: class {model.prototype_class_[j]}" for j in order])
    figure.colorbar(image, ax=axes, label="share of the training set's range")
    axes.set_title("Decoded prototypes", loc="left", fontweight="bold", color=INK)
    return figure


def _unit(picture: np.ndarray) -> np.ndarray:
    return picture / 255 if picture.dtype == np.uint8 else picture


def _pixels(picture: np.ndarray) -> np.ndarray:
    """As matplotlib wants it: channels last, and none of one."""
    if picture.ndim == 3:
        picture = np.moveaxis(picture, 0, 2)
        picture = picture[..., :3] if picture.shape[2] >= 3 else picture[..., 0]
    return picture


def _show(axes: Axes, pixels: np.ndarray) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(GREY)
