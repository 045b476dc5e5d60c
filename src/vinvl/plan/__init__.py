"""What a run will cost, told instead of running it: `python -m vinvl.train experiment=NAME +plan=true`."""

from vinvl.plan.planner import plan

__all__ = ["plan"]
