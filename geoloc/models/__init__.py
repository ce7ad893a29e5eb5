"""From pictures to numbers: the image tower, the heads that read its features, and their losses."""
