"""Run a spec's stages on a cluster, one job a stage and attempt; safe to kill and to repeat."""

from nanochat_platform.submit.objects import dry_run, stages_of
from nanochat_platform.submit.run import Options, Result, StageResult, submit

__all__ = ["Options", "Result", "StageResult", "dry_run", "stages_of", "submit"]
