"""Optimisers, learning-rate schedules and gradient clipping, with PyTorch's names and formulas."""

from gpucnn.optim import lr_scheduler as lr_scheduler
from gpucnn.optim.clip import clip_grad_norm_, clip_grad_value_
from gpucnn.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    StepLR,
    WarmUp,
)
from gpucnn.optim.optimizer import SGD, Adam, AdamW, Optimizer, RMSprop

__all__ = [
    "SGD", "Adam", "AdamW", "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "ExponentialLR",
    "LRScheduler", "LambdaLR", "LinearLR", "MultiStepLR", "OneCycleLR", "Optimizer", "PolynomialLR", "RMSprop",
    "ReduceLROnPlateau", "StepLR", "WarmUp", "clip_grad_norm_", "clip_grad_value_",
]  # fmt: skip
