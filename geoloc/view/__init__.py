"""Maps to look at: one HTML file that needs no network, and PNG figures."""
