from sb3_modelbased.mpdp.mpdp import MPDP
from sb3_modelbased.mpdp.policies import MlpPolicy

__all__ = ["MPDP", "MlpPolicy"]
