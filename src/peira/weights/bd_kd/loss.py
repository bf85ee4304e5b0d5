"""Losses of networks that learn from each other: balanced divergences and what they compare with.

Logits are (batch, classes) and labels (batch,). All losses take leading dimensions too, one for
each of several networks trained at once: logits (members, batch, classes) give losses (members,).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from peira.data.errors import DataError

Logits = Float[Tensor, "*members batch classes"]
Labels = Int[Tensor, "*members batch"]
PerSample = Float[Tensor, "*members batch"]
PerMember = Float[Tensor, "*members"]


class Softened(NamedTuple):
    """Outputs of a network at a temperature: everything the losses need of one log-softmax."""

    log: Float[Tensor, "*members batch classes"]
    prob: Float[Tensor, "*members batch classes"]

    @classmethod
    def of(cls, logits: Logits, T: float) -> Softened:
        """softmax(logits / T), in float32 at least."""
        log = F.log_softmax(_wide(logits) / T if T != 1 else _wide(logits), dim=-1)
        return cls(log, log.exp())

    def detach(self) -> Softened:
        """The same without gradients."""
        return Softened(self.log.detach(), self.prob.detach())

    def entropy(self) -> PerSample:
        """-sum_k p_k log p_k, nats, without gradients."""
        return -(self.prob.detach() * self.log.detach()).sum(-1)


class Divergences(NamedTuple):
    """Both Kullback-Leibler divergences of each sample, nats."""

    forward: PerSample
    reverse: PerSample


def divergences(own: Softened, peer: Softened) -> Divergences:
    """KL(peer || own), which spreads `own`, and KL(own || peer), which sharpens it.

    `peer` is a constant: gradients reach `own` alone.
    """
    peer = peer.detach()
    gap = own.log - peer.log
    return Divergences(-(peer.prob * gap).sum(-1), (own.prob * gap).sum(-1))


def balance_weights(
    student_entropy: PerSample,
    teacher_entropy: PerSample,
    nu: float = 2.0,
    smooth: float | None = None,
) -> Divergences:
    """Weights of the forward and the reverse divergence of each sample.

    A student more certain than its teacher gets `nu` on the forward divergence and 1 on the
    reverse; any other gets 1 and `nu`. Of the smooth rule, an extension of ours, the weights are
    2 - r and r with r = 2 sigmoid(smooth (H_student - H_teacher)).

    Args:
        student_entropy: H_student of each sample, nats.
        teacher_entropy: H_teacher of each sample, nats.
        nu: emphasis; 1 is the plain sum, below 1 the balance is inverted.
        smooth: steepness per nat of the smooth rule, which then replaces `nu`.
    """
    gap = student_entropy - teacher_entropy
    if smooth is not None:
        reverse = 2 * torch.sigmoid(smooth * gap)
        return Divergences(2 - reverse, reverse)
    certain = gap < 0
    one = torch.ones_like(gap)
    return Divergences(torch.where(certain, nu, one), torch.where(certain, one, nu))


class DistillationLoss(nn.Module):
    """label_weight CE(y, own) + alpha T^2 mean_i [f_i KL(peer || own) + r_i KL(own || peer)].

    Each subclass says what f_i and r_i are. T^2 keeps the gradients of the divergences comparable
    over temperatures (Hinton et al. 2015).

    Args:
        T: temperature of the divergences, above 0.
        alpha: weight of the divergences.
        label_weight: weight of the cross-entropy.

    Raises:
        DataError: a temperature that is not positive.
    """

    def __init__(self, T: float = 4.0, alpha: float = 1.0, label_weight: float = 1.0) -> None:
        super().__init__()
        if not T > 0:
            raise DataError("temperature T", value=T, expected="a number above 0")
        self.T, self.alpha, self.label_weight = T, alpha, label_weight
        self._checked = False

    def weights(self, own: Softened, peer: Softened) -> Divergences:
        """f and r of each sample, without gradients."""
        raise NotImplementedError

    def divergence(self, own: Softened, peer: Softened) -> PerMember:
        """alpha T^2 mean_i [f_i forward_i + r_i reverse_i] of outputs softened at T."""
        forward, reverse = divergences(own, peer)
        f, r = self.weights(own, peer)
        return self.alpha * self.T**2 * (f * forward + r * reverse).mean(-1)

    def forward(self, own_logits: Logits, peer_logits: Logits, labels: Labels) -> PerMember:
        """The whole loss of the network whose logits come first.

        Args:
            own_logits: of the network that learns, before any softmax.
            peer_logits: of the network it learns from; a constant here.
            labels: true classes.

        Raises:
            DataError: different numbers of classes, or shapes that do not fit; in the first call
                labels out of range too. Warns in the first call of logits that are probabilities.
        """
        check_shapes([own_logits, peer_logits], labels)
        if not self._checked:
            check_values([own_logits, peer_logits], labels)
            self._checked = True
        own, peer = Softened.of(own_logits, self.T), Softened.of(peer_logits.detach(), self.T)
        return self.label_weight * cross_entropy(own_logits, labels) + self.divergence(own, peer)

    def extra_repr(self) -> str:
        """Settings, as `print(loss)` shows them."""
        return f"T={self.T}, alpha={self.alpha}"


class BalancedDistillation(DistillationLoss):
    """The student's loss of BD-KD: each sample's entropies choose its emphasis.

    CE(y, student) + alpha T^2 mean_i [f_i KL(teacher || student) + r_i KL(student || teacher)]
    with (f_i, r_i) of `balance_weights`. Call it as `loss(student_logits, teacher_logits, labels)`.

    Args:
        nu: emphasis, above 1. What the paper used is not known to us; 2 is our start.
        T: temperature of divergences and entropies.
        alpha: weight of the divergences.
        smooth: steepness of our smooth rule in place of `nu`.
        entropy_T: temperature of the entropies, where that is not `T`.

    Warns of a `nu` below 1, which inverts the balance.
    """

    def __init__(
        self,
        nu: float = 2.0,
        T: float = 4.0,
        alpha: float = 1.0,
        smooth: float | None = None,
        entropy_T: float | None = None,
    ) -> None:
        super().__init__(T, alpha)
        if nu <= 0 or (entropy_T is not None and entropy_T <= 0):
            raise DataError("nu and entropy_T", value=(nu, entropy_T), expected="above 0")
        if nu < 1:
            warnings.warn(
                f"nu = {nu} is below 1: a certain student is sharpened further", UserWarning,
                stacklevel=2,
            )  # fmt: skip
        self.nu, self.smooth, self.entropy_T = nu, smooth, entropy_T

    def weights(self, own: Softened, peer: Softened) -> Divergences:
        """By `balance_weights`, of the entropies at `entropy_T`."""
        student, teacher = (self._at_entropy_T(one).entropy() for one in (own, peer))
        return balance_weights(student, teacher, self.nu, self.smooth)

    def _at_entropy_T(self, one: Softened) -> Softened:
        if self.entropy_T is None:
            return one
        # Log-probabilities are logits up to a constant.
        return Softened.of(one.log.detach(), self.entropy_T / self.T)

    def extra_repr(self) -> str:
        """Settings, as `print(loss)` shows them."""
        rule = f"nu={self.nu}" if self.smooth is None else f"smooth={self.smooth}"
        return f"{rule}, {super().extra_repr()}"


class MutualLoss(DistillationLoss):
    """Deep mutual learning: CE(y, own) + alpha T^2 mean KL(peer || own) (Zhang et al. 2018).

    With one peer it is the student's loss of DML and the teacher's loss of DML and BD-KD, where
    KL(student || teacher) is the paper's reverse divergence.

    Args:
        T: temperature; 1 as published for DML, 4 beside `BalancedDistillation`.
        alpha: weight of the divergences.
        forward: weight of KL(peer || own) in every sample.
        reverse: weight of KL(own || peer): (0, 1) and (1, 1) are the ablations of BD-KD.
    """

    def __init__(
        self, T: float = 1.0, alpha: float = 1.0, forward: float = 1.0, reverse: float = 0.0
    ) -> None:
        super().__init__(T, alpha)
        self.fixed = (forward, reverse)

    def weights(self, own: Softened, peer: Softened) -> Divergences:
        """The two fixed numbers."""
        return Divergences(*(torch.as_tensor(w, device=own.log.device) for w in self.fixed))

    def divergence(self, own: Softened, peer: Softened) -> PerMember:
        """alpha T^2 mean_i [forward KL(peer || own) + reverse KL(own || peer)]."""
        if self.fixed != (1.0, 0.0):
            return super().divergence(own, peer)
        peer = peer.detach()
        forward = (peer.prob * (peer.log - own.log)).sum((-2, -1)) / own.log.shape[-2]
        return self.alpha * self.T**2 * forward


class OfflineDistillation(MutualLoss):
    """Hinton's: (1 - weight) CE(y, student) + weight T^2 KL(teacher || student), teacher frozen.

    Args:
        T: temperature.
        weight: of the teacher against the labels; 0.9 in the usual benchmarks.
    """

    def __init__(self, T: float = 4.0, weight: float = 0.9) -> None:
        super().__init__(T, alpha=weight)
        self.label_weight = 1 - weight


def bdkd_loss(
    student_logits: Float[Tensor, "*members batch classes"],
    teacher_logits: Float[Tensor, "*members batch classes"],
    labels: Int[Tensor, "*members batch"],
    nu: float = 2.0,
    T: float = 4.0,
    alpha: float = 1.0,
) -> Float[Tensor, "*members"]:
    """The student's loss of BD-KD for a training loop of one's own: `BalancedDistillation`.

    Args:
        student_logits: before any softmax.
        teacher_logits: a constant here: no gradient reaches the teacher.
        labels: true classes.
        nu: emphasis, above 1.
        T: temperature.
        alpha: weight of the divergences.

    Raises:
        DataError: as `BalancedDistillation`.
    """
    return BalancedDistillation(nu, T, alpha)(student_logits, teacher_logits, labels)


def cross_entropy(logits: Logits, labels: Labels, smoothing: float = 0.0) -> PerMember:
    """Mean cross-entropy over the batch, nats, of each member."""
    if labels.ndim == 1:
        return F.cross_entropy(_wide(logits), labels, label_smoothing=smoothing)
    flat = F.cross_entropy(
        _wide(logits).flatten(0, -2), labels.flatten(), reduction="none", label_smoothing=smoothing
    )
    return flat.view(labels.shape).mean(-1)


def smallest_logits(logits: Sequence[Logits], labels: Labels) -> Logits:
    """Teacher of KDCL-MinLogit: of every class the smallest logit above that of the true class.

    z_k = min over networks j of (z_jk - z_jy): its cross-entropy is below that of every network
    (Guo et al. 2020). A constant.
    """
    index = labels.unsqueeze(-1)
    wide = [_wide(one.detach()) for one in logits]
    centred = [one - one.gather(-1, index) for one in wide]
    return torch.stack(centred).amin(0)


def expert_mode(
    student_logits: Logits, teacher_logits: Logits, labels: Labels
) -> Bool[Tensor, "*members"]:
    """Whether SwitOKD pauses the teacher in this batch (Qian et al. 2022, official code).

    With batch means of the L1 distances s = |p_s - y|, t = |p_t - y| and G = |p_s - p_t| at
    temperature 1: paused where t < s and G > s - exp(-t / (s + t)) t.
    """
    student, teacher = (_wide(one.detach()).softmax(-1) for one in (student_logits, teacher_logits))
    index = labels.unsqueeze(-1)
    # |p - onehot|_1 = 2 (1 - p_y).
    s, t = (2 * (1 - p.gather(-1, index).squeeze(-1)).mean(-1) for p in (student, teacher))
    gap = (student - teacher).abs().sum(-1).mean(-1)
    return (t < s) & (gap > s - torch.exp(-t / (s + t)) * t)


def _wide(logits: Tensor) -> Tensor:
    """In float32, where it is half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


def check_shapes(logits: Sequence[Tensor], labels: Tensor) -> None:
    """Raise `DataError` unless all networks have outputs for these labels."""
    sizes = {one.shape[-1] for one in logits}
    if len(sizes) > 1:
        raise DataError("numbers of classes differ", value=sorted(sizes), expected="equal outputs")
    for one in logits:
        if one.shape[:-1] != labels.shape:
            raise DataError(
                "shape of the logits", value=tuple(one.shape),
                expected=f"{(*labels.shape, 'classes')} for labels {tuple(labels.shape)}",
            )  # fmt: skip


def check_values(logits: Sequence[Tensor], labels: Tensor) -> None:
    """Raise `DataError` for labels out of range; warn of logits that are probabilities."""
    classes = logits[0].shape[-1]
    check_labels(labels, classes)
    for one in logits:
        sums = one.detach().float().sum(-1)
        if classes > 1 and bool((one.detach() >= 0).all() & ((sums - 1).abs() < 1e-4).all()):
            warnings.warn(
                "logits that are all positive and sum to 1: give outputs before the softmax",
                UserWarning, stacklevel=3,
            )  # fmt: skip


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise `DataError`, naming the first, for a label that is none of 0 to `classes` - 1."""
    wrong = torch.nonzero((labels.flatten() < 0) | (labels.flatten() >= classes))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"label of sample {row + 1}", value=int(labels.flatten()[row]),
            expected=f"0 to {classes - 1}",
        )  # fmt: skip
