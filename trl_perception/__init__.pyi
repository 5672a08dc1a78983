# What editors see of the package, whose names are imported when asked for.
from .assets import from_pretrained as from_pretrained
from .trainers import *

__version__: str
