"""Model-based reinforcement learning for Stable-Baselines3."""

from sb3_modelbased.maac import MAAC
from sb3_modelbased.memb import MEMB, SVG1
from sb3_modelbased.mpdp import MPDP

__version__ = "0.1.0"

__all__ = ["MAAC", "MEMB", "MPDP", "SVG1"]
