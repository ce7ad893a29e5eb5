"""Data sets as they lie on the disk: one module for each layout, and all of them give a `SampleTable`."""

from geoloc.data.layouts.open import LAYOUTS, Layout, check_layout, open_layout

__all__ = ["LAYOUTS", "Layout", "check_layout", "open_layout"]
