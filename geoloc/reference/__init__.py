"""Reference databases: what photos are compared with, on the disk and in a search. Knows no model."""
