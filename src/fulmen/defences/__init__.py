"""Defences: systems around a system, whose training makes it robust."""

from fulmen.defences.free import *
from fulmen.defences.gradalign import *
from fulmen.defences.guard import *
from fulmen.defences.mart import *
from fulmen.defences.starts import *
from fulmen.defences.trades import *
from fulmen.defences.vat import *
from fulmen.defences.weights import *
