"""Defences: systems around a system, whose training makes it robust."""

from fulmen.robust.defences.free import *
from fulmen.robust.defences.gradalign import *
from fulmen.robust.defences.guard import *
from fulmen.robust.defences.mart import *
from fulmen.robust.defences.starts import *
from fulmen.robust.defences.trades import *
from fulmen.robust.defences.vat import *
from fulmen.robust.defences.weights import *
