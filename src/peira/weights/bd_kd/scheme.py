"""Who learns what from whom: the losses of a teacher and its students in one joint step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from peira.data.errors import DataError
from peira.engine.errors import nearest
from peira.weights.bd_kd.loss import (
    BalancedDistillation,
    DistillationLoss,
    Divergences,
    MutualLoss,
    OfflineDistillation,
    Softened,
    cross_entropy,
    divergences,
    expert_mode,
    smallest_logits,
)

SCHEMES = (
    "ce", "smoothing", "kd", "dml", "kdcl", "switokd", "reverse", "sum", "bdkd", "inverted",
    "smooth", "dml-matched", "sum-matched",
)  # fmt: skip
# Steepness of the smooth rule, per nat.
SMOOTH = 4.0

Logits = Float[Tensor, "*members batch classes"]
Labels = Int[Tensor, "*members batch"]
PerMember = Float[Tensor, "*members"]


class Scheme(nn.Module):
    """Losses of networks trained together: a teacher first, then its students.

    Each student averages its divergences over all the others, the teacher over the students. What
    a network learns from is a constant, and each network's outputs are softened once per step.

    Args:
        student: loss of the students; without it they learn from the labels alone.
        teacher: loss of the teacher; without it it learns from the labels alone.
        smoothing: of the labels.
        frozen: the teacher does not learn.
    """

    def __init__(
        self,
        student: DistillationLoss | None = None,
        teacher: DistillationLoss | None = None,
        *,
        smoothing: float = 0.0,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.smoothing, self.frozen = smoothing, frozen

    @property
    def T(self) -> float:
        """Temperature at which students are compared with their teacher."""
        return 1.0 if self.student is None else self.student.T

    def forward(self, logits: Sequence[Logits], labels: Labels) -> list[PerMember | None]:
        """The loss of each network, in their order; None for one that does not learn."""
        rules = [self.teacher, *[self.student] * (len(logits) - 1)]
        soft = {
            rule.T: [Softened.of(one, rule.T) for one in logits]
            for rule in rules
            if rule is not None
        }
        losses: list[PerMember | None] = []
        for place, (own, rule) in enumerate(zip(logits, rules, strict=True)):
            if place == 0 and self.frozen:
                losses.append(None)
                continue
            loss = cross_entropy(own, labels, self.smoothing)
            others = [i for i in range(len(logits)) if i != place]
            if rule is not None and others:
                terms = [rule.divergence(soft[rule.T][place], soft[rule.T][i]) for i in others]
                loss = rule.label_weight * loss + sum(terms) / len(terms)
            losses.append(loss)
        return losses

    def paused(self, logits: Sequence[Logits], labels: Labels) -> Bool[Tensor, "*members"] | None:
        """Whether the teacher sits this batch out; None where it never does."""
        return None


class Switched(Scheme):
    """SwitOKD: mutual learning whose teacher pauses while it is too far ahead (Qian et al. 2022).

    `expert_mode` of the first student decides. Temperature 1, as in the official code.
    """

    def __init__(self, T: float = 1.0, alpha: float = 1.0) -> None:
        super().__init__(MutualLoss(T, alpha), MutualLoss(T, alpha))

    def paused(self, logits: Sequence[Logits], labels: Labels) -> Bool[Tensor, "*members"] | None:
        """Whether this batch is in expert mode."""
        return expert_mode(logits[1], logits[0], labels)


class Collaborative(Scheme):
    """KDCL-MinLogit: all networks learn from `smallest_logits` of all (Guo et al. 2020).

    CE(y, own) + alpha T^2 mean KL(target || own) for the teacher too.
    """

    def __init__(self, T: float = 4.0, alpha: float = 1.0) -> None:
        super().__init__(MutualLoss(T, alpha), MutualLoss(T, alpha))

    def forward(self, logits: Sequence[Logits], labels: Labels) -> list[PerMember | None]:
        """The loss of each network, in their order."""
        rule = self.student
        assert rule is not None
        target = Softened.of(smallest_logits(logits, labels), rule.T)
        return [
            cross_entropy(one, labels) + rule.divergence(Softened.of(one, rule.T), target)
            for one in logits
        ]


class _Inverted(BalancedDistillation):
    """The weights swapped: a certain student is sharpened further."""

    def weights(self, own: Softened, peer: Softened) -> Divergences:
        forward, reverse = super().weights(own, peer)
        return Divergences(reverse, forward)


def make_scheme(name: str, nu: float = 2.0, T: float = 4.0, alpha: float = 1.0) -> Scheme:
    """The scheme of that name.

    Args:
        name: ce (labels alone), smoothing (labels smoothed by 0.1), kd (a frozen teacher), dml,
            kdcl, switokd (at its own T = 1 and alpha = 1), bdkd; of the student's divergences:
            reverse, sum (both, unweighted), inverted (the balance swapped), smooth (our rule, 4
            per nat), dml-matched and sum-matched (fixed weights that add up to 1 + nu).
        nu: emphasis of bdkd.
        T: temperature.
        alpha: weight of the divergences.

    Raises:
        DataError: an unknown name.
    """
    if name not in SCHEMES:
        raise DataError(f"no loss {name!r}; {nearest(name, SCHEMES)}")
    whole = {
        "ce": Scheme,
        "smoothing": lambda: Scheme(smoothing=0.1),
        "kd": lambda: Scheme(OfflineDistillation(T), frozen=True),
        "kdcl": lambda: Collaborative(T, alpha),
        "switokd": Switched,
    }
    if name in whole:
        return whole[name]()
    total = 1 + nu
    fixed = {
        "dml": (1.0, 0.0),
        "reverse": (0.0, 1.0),
        "sum": (1.0, 1.0),
        "dml-matched": (total, 0.0),
        "sum-matched": (total / 2, total / 2),
    }
    balanced = {
        "bdkd": lambda: BalancedDistillation(nu, T, alpha),
        "inverted": lambda: _Inverted(nu, T, alpha),
        "smooth": lambda: BalancedDistillation(nu, T, alpha, smooth=SMOOTH),
    }
    student = MutualLoss(T, alpha, *fixed[name]) if name in fixed else balanced[name]()
    return Scheme(student, MutualLoss(T, alpha))


def entropy_gap(
    student_logits: Float[Tensor, "*members batch classes"],
    teacher_logits: Float[Tensor, "*members batch classes"],
    T: float = 1.0,
) -> Float[Tensor, "*members"]:
    """mean_i |H_student,i - H_teacher,i| of outputs at temperature T, nats."""
    student, teacher = (Softened.of(one.detach(), T) for one in (student_logits, teacher_logits))
    return (student.entropy() - teacher.entropy()).abs().mean(-1)


def true_calibration_error(
    probs: Float[Tensor, "n classes"], posterior: Float[Tensor, "n classes"], bins: int = 100
) -> float:
    """E |P(correct | confidence) - confidence| where the posterior is known, without label noise.

    The chance to be right is the posterior of the predicted class; it is averaged over `bins`
    groups of samples of like confidence, equally many each.

    Args:
        probs: of the network.
        posterior: p(y | x) of the same inputs.
        bins: groups; with many samples in each, the error of the average vanishes.
    """
    confidence, predicted = probs.double().max(1)
    correct = posterior.double().gather(1, predicted.unsqueeze(1)).squeeze(1)
    order = confidence.argsort(stable=True)
    groups = (correct - confidence)[order].tensor_split(bins)
    return float(sum(group.sum().abs() for group in groups) / len(order))


def posterior_divergence(
    probs: Float[Tensor, "n classes"], posterior: Float[Tensor, "n classes"]
) -> float:
    """Mean KL(posterior || network), nats: what its likelihood loses against the truth."""
    tiny = torch.finfo(torch.double).tiny
    log_p, log_q = (one.double().clamp(min=tiny).log() for one in (probs, posterior))
    return float(
        divergences(Softened(log_p, log_p.exp()), Softened(log_q, log_q.exp())).forward.mean()
    )
