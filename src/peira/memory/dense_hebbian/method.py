"""Dense Hebbian networks: the memory, its theory, its Monte Carlo, Plefka's equations."""

from __future__ import annotations

from peira.memory.dense_hebbian.examples import Examples
from peira.memory.dense_hebbian.network import DenseHebbian, Retrieval
from peira.memory.dense_hebbian.plefka import Magnetisations, plefka
from peira.memory.dense_hebbian.rules import nearest_mean, pseudo_inverse, softmax_memory
from peira.memory.dense_hebbian.simulation import Simulated, dense_energy, simulate
from peira.memory.dense_hebbian.tensor import (
    CouplingTensor,
    coupling_tensor,
    measure_tolerated_noise,
    tensor_heat_bath,
)
from peira.memory.dense_hebbian.theory import (
    Branches,
    OrderParameters,
    branches,
    critical_load,
    dense_examples_needed,
    glass,
    order_parameters,
    phase_diagram,
    retrieval_temperature,
    tolerated_noise,
)

__all__ = [
    "Branches",
    "CouplingTensor",
    "DenseHebbian",
    "Examples",
    "Magnetisations",
    "OrderParameters",
    "Retrieval",
    "Simulated",
    "branches",
    "coupling_tensor",
    "critical_load",
    "dense_energy",
    "dense_examples_needed",
    "glass",
    "measure_tolerated_noise",
    "nearest_mean",
    "order_parameters",
    "phase_diagram",
    "plefka",
    "pseudo_inverse",
    "retrieval_temperature",
    "simulate",
    "softmax_memory",
    "tensor_heat_bath",
    "tolerated_noise",
]
