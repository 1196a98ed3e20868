"""What a training will take, told before it is begun: from half a minute of measuring."""

from crosspair.planning.measuring import Measured
from crosspair.planning.plan import Plan, plan
from crosspair.planning.projection import Projection

__all__ = ["Measured", "Plan", "Projection", "plan"]
