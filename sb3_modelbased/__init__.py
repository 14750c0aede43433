"""Model-based reinforcement learning for Stable-Baselines3."""

from sb3_modelbased.maac import MAAC

__version__ = "0.1.0"

__all__ = ["MAAC"]
