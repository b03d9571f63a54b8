"""The attacks, one to a file; importing this package registers them."""

from nutlet.attacks.active_thief import ActiveThief
from nutlet.attacks.adaptive_knockoff import AdaptiveKnockoff
from nutlet.attacks.bavaria import BaVarIA
from nutlet.attacks.data_free import DataFree
from nutlet.attacks.knockoff import Knockoff
from nutlet.attacks.label_only import LabelOnly
from nutlet.attacks.lira import LiRA
from nutlet.attacks.loss_threshold import LossThreshold
from nutlet.attacks.rmia import RMIA
from nutlet.attacks.samia import SAMIA
from nutlet.attacks.shadow_classifier import ShadowClassifier
from nutlet.attacks.two_version import TwoVersion

__all__ = [
    "RMIA",
    "SAMIA",
    "ActiveThief",
    "AdaptiveKnockoff",
    "BaVarIA",
    "DataFree",
    "Knockoff",
    "LabelOnly",
    "LiRA",
    "LossThreshold",
    "ShadowClassifier",
    "TwoVersion",
]
