"""What a run will need, take and cost, before anything is started or paid for. Imports no torch."""

from nanochat_platform.plan.here import known_data, measure_here
from nanochat_platform.plan.make import make_plan
from nanochat_platform.plan.model import DataFacts, Plan, PlannedObject
from nanochat_platform.plan.text import describe

__all__ = ["DataFacts", "Plan", "PlannedObject", "describe", "known_data", "make_plan", "measure_here"]
