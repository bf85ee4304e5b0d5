"""The look of a study's figure: one slide, quiet axes, bold titles on the left."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY = "#22272e", "#8b949e"


def slide(width: float = 13.3, height: float = 7.5) -> Figure:
    """An empty figure of the size of a slide, in inches."""
    # Not pyplot, which keeps every figure and asks for a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def title(axes: Axes, text: str) -> None:
    """What a panel shows."""
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold", color=INK)


def quiet(axes: Axes) -> None:
    """Two spines and small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", colors=INK, labelsize=9)
