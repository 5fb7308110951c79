"""MuonAdamW and its schedules; import from here."""

from nanochat.optim.groups import OptimHyper
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.optim.schedule import (
    Schedule,
    StepHyper,
    base_schedule,
    lr_multiplier,
    mid_schedule,
    muon_momentum,
    muon_weight_decay,
    sft_schedule,
)

__all__ = [
    "MuonAdamW",
    "OptimHyper",
    "Schedule",
    "StepHyper",
    "base_schedule",
    "lr_multiplier",
    "mid_schedule",
    "muon_momentum",
    "muon_weight_decay",
    "sft_schedule",
]
