"""Stage modules: each has `run(context) -> StageResult`."""
