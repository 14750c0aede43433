"""Policies for MAAC."""

from sb3_modelbased.common.policies import ModelBasedSACPolicy

MlpPolicy = ModelBasedSACPolicy

__all__ = ["MlpPolicy"]
