"""Looking at things: summaries, loss trees, what was dispatched where, as text, in pictures and in notebooks."""

from fulmen.looking.curves import *
from fulmen.looking.explanation import *
from fulmen.looking.lossbars import *
from fulmen.looking.lossnodes import *
from fulmen.looking.methods import methods_table as methods_table
from fulmen.looking.outline import html_tree as html_tree
from fulmen.looking.table import *
