"""Helpers for gradients, parameters and sequences, as ``torch.nn.utils``."""

from weft.nn.utils import rnn
from weft.nn.utils.parameters import (
    clip_grad_norm_,
    clip_grad_value_,
    get_total_norm,
    parameters_to_vector,
    vector_to_parameters,
)

__all__ = [
    "clip_grad_norm_", "clip_grad_value_", "get_total_norm", "parameters_to_vector",
    "rnn", "vector_to_parameters",
]  # fmt: skip
