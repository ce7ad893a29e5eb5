"""From photos to coordinates: the model as a whole, its posterior over the Earth, and what a user gets."""
