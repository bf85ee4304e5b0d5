"""GraphMixer, the network without memory and attention."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.data.temporal import TemporalEdges
from peira.graphs.nat.attention import PairScore, padded, questions
from peira.graphs.nat.history import Recent


class GraphMixer(nn.Module):
    """Links of each node mixed by a small MLP-Mixer (Cong et al. 2023); no memory, no attention.

    Each node keeps its last `links` events, newest first; each becomes [cos(dt w) | features] with
    fixed w; one mixer block over links and channels and a mean give its vector.

    Args:
        edges: the stream that it will be shown.
        width: of vectors and time code.
        links: how many events a node keeps.
        time_unit: what waiting times are divided by.
    """

    def __init__(
        self, edges: TemporalEdges, *, width: int = 100, links: int = 10, time_unit: float = 1.0
    ) -> None:
        super().__init__()
        self.register_buffer("msg", padded(edges.msg), persistent=False)
        # alpha = beta = sqrt(d): the frequencies of the paper.
        frequency = width ** (-torch.arange(width) / width**0.5 / 2)
        self.register_buffer("frequency", frequency, persistent=False)
        self.time_unit = time_unit
        self.enter = nn.Linear(width + edges.msg.shape[1], width)
        self.norm_links, self.norm_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix_links = nn.Sequential(
            nn.Linear(links, links // 2), nn.GELU(), nn.Linear(links // 2, links)
        )
        self.mix_channels = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.leave = nn.Linear(width, width)
        self.score = PairScore(width)
        self.recent = Recent(edges.num_nodes + 1, links)

    def reset(self) -> None:
        """Forget the stream."""
        self.recent.reset()

    def _vectors(
        self, nodes: Int[Tensor, " n"], now: Float[Tensor, " n"]
    ) -> Float[Tensor, "n width"]:
        _, edge, t = self.recent.newest(nodes)
        waited = ((now[:, None] - t) / self.time_unit).float()
        x = torch.cos(waited[..., None] * self.frequency)
        x = self.enter(torch.cat([x, self.msg[edge]], dim=-1)) * (edge > 0)[..., None]
        x = x + self.mix_links(self.norm_links(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.mix_channels(self.norm_channels(x))
        return self.leave(x.mean(1))

    def forward(
        self,
        src: Int[Tensor, " events"],
        candidates: Int[Tensor, "events options"],
        t: Float[Tensor, " events"],
    ) -> tuple[Float[Tensor, "events options"], None]:
        """Logits of each source with its candidates."""
        z = self._vectors(*questions(src, candidates, t))
        return self.score(z, candidates.shape), None

    @torch.no_grad()
    def write(
        self,
        src: Int[Tensor, " events"],
        dst: Int[Tensor, " events"],
        t: Float[Tensor, " events"],
        edge: Int[Tensor, " events"],
        read: Any = None,
    ) -> None:
        """Keep the last events of each node."""
        self.recent.append(src, dst, t, edge)
