"""What every test shares: one thread for each worker, no window, and a torchvision that imports."""

import os

# Before torch and matplotlib are imported: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings

from geoloc.torchvision_cpu import ensure_importable

# A shared machine can pause any example for seconds: a deadline would test the machine. In CI the examples
# are the same in every run, so that a red run is the change's doing; at a desk they differ, so that luck can
# find more.
settings.register_profile("geoloc", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("geoloc")

ensure_importable()
