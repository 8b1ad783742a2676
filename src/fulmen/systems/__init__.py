"""Systems: components composed for a task."""

from fulmen.compose.per_member import PerMember
from fulmen.compose.population import Population
from fulmen.compose.supervised import Classifier, Regressor, Supervised
from fulmen.core.verbs import embeddings, gan_losses, sample, weigh
from fulmen.systems.actor_critic import ActorCritic, Rollout
from fulmen.systems.alternating import Alternating
from fulmen.systems.autoencoders import VAE, VQVAE, CodeUsage
from fulmen.systems.ema import EMA, Averaged
from fulmen.systems.gan import GAN, NonSaturating, Wasserstein
from fulmen.systems.language import LanguageModel, Tokens
from fulmen.systems.mixed_precision import LossScaled, MixedPrecision
from fulmen.systems.multi_task import MultiTask
from fulmen.systems.representations import BYOL, CLIP, SelfSupervised
from fulmen.systems.semi_supervised import SemiSupervised
from fulmen.systems.teachers import Distillation, MeanTeacher
from fulmen.systems.weighted import Uncertainty, Weighted

__all__ = [
    "ActorCritic", "Alternating", "Averaged", "BYOL", "CLIP", "Classifier", "CodeUsage", "Distillation", "EMA", "GAN",
    "LanguageModel", "LossScaled", "MeanTeacher", "MixedPrecision", "MultiTask", "NonSaturating", "PerMember",
    "Population", "Regressor", "Rollout", "SelfSupervised", "SemiSupervised", "Supervised", "Tokens", "Uncertainty",
    "VAE", "VQVAE", "Wasserstein", "Weighted", "embeddings", "gan_losses", "sample", "weigh",
]  # fmt: skip
