"""The attacks, one to a file; importing this package registers them."""

from nutlet.attacks.active_thief import ActiveThief
from nutlet.attacks.adaptive_knockoff import AdaptiveKnockoff
from nutlet.attacks.bavaria import BaVarIA
from nutlet.attacks.data_free import DataFree
from nutlet.attacks.file_leaks import FileLeaks
from nutlet.attacks.generator_inversion import GeneratorInversion
from nutlet.attacks.inversion import MIFace
from nutlet.attacks.jbda import JBDA
from nutlet.attacks.knockoff import Knockoff
from nutlet.attacks.label_only import LabelOnly
from nutlet.attacks.last_layer import LastLayerWidth
from nutlet.attacks.lira import LiRA
from nutlet.attacks.loss_threshold import LossThreshold
from nutlet.attacks.recover_weights import RecoverWeights
from nutlet.attacks.refine import Refine
from nutlet.attacks.reuse import Reuse
from nutlet.attacks.rmia import RMIA
from nutlet.attacks.samia import SAMIA
from nutlet.attacks.semi_supervised import SemiSupervised
from nutlet.attacks.shadow_classifier import ShadowClassifier
from nutlet.attacks.two_version import TwoVersion

__all__ = [
    "JBDA",
    "RMIA",
    "SAMIA",
    "ActiveThief",
    "AdaptiveKnockoff",
    "BaVarIA",
    "DataFree",
    "FileLeaks",
    "GeneratorInversion",
    "Knockoff",
    "LabelOnly",
    "LastLayerWidth",
    "LiRA",
    "LossThreshold",
    "MIFace",
    "RecoverWeights",
    "Refine",
    "Reuse",
    "SemiSupervised",
    "ShadowClassifier",
    "TwoVersion",
]
