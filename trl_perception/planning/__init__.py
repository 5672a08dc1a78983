"""Predicts batches, tokens and memory of a run before it starts."""

from .memory import MemoryPart, World, memory_parts, peak
from .plan import RunPlan, plan_recipe, plan_run, world_of

__all__ = ["MemoryPart", "RunPlan", "World", "memory_parts", "peak", "plan_recipe", "plan_run", "world_of"]
