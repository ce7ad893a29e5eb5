from .recipes import Recipe as Recipe
from .recipes import register as register
from .trainer import Fitted as Fitted
from .trainer import fit as fit
from .trainer import predict_all as predict_all
