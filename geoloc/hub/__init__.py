"""Where models come from and go to: a name becomes a verified folder. Knows no model."""
