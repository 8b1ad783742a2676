"""Reference layers and models on plain JAX: images are `(n, height, width, channels)`, the batch axis comes first."""

from fulmen.models.attention import *
from fulmen.models.chain import *
from fulmen.models.convnet import *
from fulmen.models.embedding import *
from fulmen.models.generation import *
from fulmen.models.layers import *
from fulmen.models.mlp import *
from fulmen.models.normalization import *
from fulmen.models.pooling import *
from fulmen.models.quantizer import *
from fulmen.models.resnet import *
from fulmen.models.stacked import *
from fulmen.models.transformer import *
