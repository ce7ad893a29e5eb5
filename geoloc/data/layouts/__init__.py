"""Layouts of data sets on disk; each module reads one layout into a `SampleTable`."""

from geoloc.data.layouts.open import LAYOUTS, Layout, check_layout, open_layout

__all__ = ["LAYOUTS", "Layout", "check_layout", "open_layout"]
