"""Systems: components composed for a task."""

from fulmen.compose.per_member import PerMember
from fulmen.compose.population import Population
from fulmen.compose.supervised import Classifier, Supervised
from fulmen.core.verbs import embeddings, gan_losses, sample, weigh
from fulmen.systems.actor_critic import ActorCritic, Rollout
from fulmen.systems.alternating import Alternating
from fulmen.systems.clip import CLIP
from fulmen.systems.distillation import Distillation
from fulmen.systems.ema import EMA, Averaged
from fulmen.systems.gan import GAN, NonSaturating, Wasserstein
from fulmen.systems.language import LanguageModel, Tokens
from fulmen.systems.mean_teacher import MeanTeacher
from fulmen.systems.mixed_precision import LossScaled, MixedPrecision
from fulmen.systems.multi_task import MultiTask
from fulmen.systems.regressor import Regressor
from fulmen.systems.self_supervised import BYOL, SelfSupervised
from fulmen.systems.semi_supervised import SemiSupervised
from fulmen.systems.vae import VAE
from fulmen.systems.vqvae import VQVAE, CodeUsage
from fulmen.systems.weighted import Uncertainty, Weighted

__all__ = [
    "ActorCritic",
    "Alternating",
    "Averaged",
    "BYOL",
    "CLIP",
    "Classifier",
    "CodeUsage",
    "Distillation",
    "EMA",
    "GAN",
    "LanguageModel",
    "LossScaled",
    "MeanTeacher",
    "MixedPrecision",
    "MultiTask",
    "NonSaturating",
    "PerMember",
    "Population",
    "Regressor",
    "Rollout",
    "SelfSupervised",
    "SemiSupervised",
    "Supervised",
    "Tokens",
    "Uncertainty",
    "VAE",
    "VQVAE",
    "Wasserstein",
    "Weighted",
    "embeddings",
    "gan_losses",
    "sample",
    "weigh",
]
