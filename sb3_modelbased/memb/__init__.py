from sb3_modelbased.memb.memb import MEMB
from sb3_modelbased.memb.policies import MEMBPolicy, MlpPolicy
from sb3_modelbased.memb.svg import SVG1

__all__ = ["MEMB", "SVG1", "MEMBPolicy", "MlpPolicy"]
