from .formats import adapt as adapt
from .options import Options as Options
from .registry import PublishedModel as PublishedModel
from .registry import find_published as find_published
