from .card import Source as Source
from .card import read_metrics as read_metrics
from .card import render_card as render_card
from .push import Pushed as Pushed
from .push import PushOptions as PushOptions
