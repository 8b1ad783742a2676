"""Layers and reference models in plain JAX: images are `(n, height, width, channels)`, the batch axis is the first."""

from fulmen.core.verbs import empty_cache, initial_carry
from fulmen.models.attention import Attention, KeyValues, rotary
from fulmen.models.chain import MLP, Chain, ConvNet, Function
from fulmen.models.convolution import Conv, ConvTranspose, Upsample
from fulmen.models.generation import generate
from fulmen.models.input_normalization import Normalized
from fulmen.models.layers import Dense, Dropout, Flatten
from fulmen.models.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from fulmen.models.pooling import AvgPool, GlobalAvgPool, MaxPool
from fulmen.models.recurrent import GRU, LSTM, Scan
from fulmen.models.remat import Remat
from fulmen.models.repeated_use import fold
from fulmen.models.resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet34, resnet50
from fulmen.models.stacked import Stacked
from fulmen.models.transformer import Transformer, TransformerBlock, gpt2
from fulmen.models.vector_tables import Embedding, Quantizer

__all__ = [
    "Attention", "AvgPool", "BasicBlock", "BatchNorm", "Bottleneck", "Chain", "Conv", "ConvNet", "ConvTranspose",
    "Dense", "Dropout", "Embedding", "Flatten", "Function", "GRU", "GlobalAvgPool", "GroupNorm", "KeyValues", "LSTM",
    "LayerNorm", "MLP", "MaxPool", "Normalized", "Quantizer", "RMSNorm", "Remat", "ResNet", "Scan", "Stacked",
    "Transformer", "TransformerBlock", "Upsample", "empty_cache", "fold", "generate", "gpt2", "initial_carry",
    "resnet18", "resnet34", "resnet50", "rotary",
]  # fmt: skip
