"""What a run will do and need, before it begins: batches, tokens, memory."""

from .memory import MemoryPart, World, memory_parts, peak
from .plan import RunPlan, plan_recipe, plan_run, world_of

__all__ = ["MemoryPart", "RunPlan", "World", "memory_parts", "peak", "plan_recipe", "plan_run", "world_of"]
