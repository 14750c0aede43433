from sb3_modelbased.maac.maac import MAAC
from sb3_modelbased.maac.policies import MlpPolicy

__all__ = ["MAAC", "MlpPolicy"]
