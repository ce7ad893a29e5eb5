"""Street scale: every other frame of a street is the database, the rest are queries; recall@1 within 25 m.

    python benchmarks/street_lund.py street_photos/ --metadata street_photos/photos.csv --keys 'opensfm-lund-*'
    … --model runs/places/CHECKPOINT        # a street tower of ours instead, such as scripts/compare_places.py trains

The frames are meant to be neighbours by name (OpenSfM's sample of a street in Lund has 29, about 10 m apart). The
tower is EfficientNet-Lite0 as ImageNet left it; beside it stands what a guess among the references would reach, and
the most that any answer could. `earthview` has no embedding for street photos, so it cannot be asked.
"""

import argparse
import fnmatch
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from references.imagenet_tower import ImagenetTower, all_rows

from geoloc import Geolocalizer
from geoloc.images import load_and_preprocess
from geoloc.photos.positioned import read_metadata
from geoloc.reference.database import ReferenceDatabase
from quadtree import geodesic_km

RADII_M = (10.0, 25.0, 50.0)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?", help="a folder")
    parser.add_argument("--metadata", help="its table: id, latitude, longitude")
    parser.add_argument("--keys", default="*", help="a pattern of the ids")
    parser.add_argument("--size-px", type=int, default=224, help="of the ImageNet tower's pictures")
    parser.add_argument("--model", help="a checkpoint with one embedding for photos and street references")
    options = parser.parse_args()
    if options.photos is None or options.metadata is None:
        print("left out: needs photos with positions, see the head of this file")
        return
    known = read_metadata(options.metadata)
    places = dict(zip(known["id"], zip(known["latitude"], known["longitude"], strict=True), strict=True))
    frames = sorted(key for key in places if fnmatch.fnmatch(key, options.keys))
    references, queries = frames[::2], frames[1::2]
    tower = Geolocalizer.from_pretrained(options.model) if options.model else ImagenetTower(options.size_px)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "references.csv"
        rows = [{"id": key, "latitude": places[key][0], "longitude": places[key][1]} for key in references]
        pyarrow.csv.write_csv(pa.Table.from_pylist(rows), table)
        database = ReferenceDatabase.create(Path(folder) / "refs", model=tower)
        report = database.add_street(options.photos, metadata=table)
        vectors, latlon_deg, keys = all_rows(database)
    assert sorted(keys) == references
    assert report.num_problems == 0
    shown = [load_and_preprocess(Path(options.photos) / key, tower.preprocess) for key in queries]
    scores = tower.embed_reference(torch.stack(shown), "street") @ vectors.T
    truth = np.array([places[key] for key in queries])
    apart_m = 1000 * np.stack([geodesic_km(latlon_deg, np.broadcast_to(t, latlon_deg.shape)) for t in truth])
    ranked = np.take_along_axis(apart_m, np.argsort(-scores, axis=1), axis=1)
    print(
        f"{len(references)} references, {len(queries)} queries, {tower.preprocess.image_size_px} px; nearest reference "
        f"{apart_m.min(1).mean():.0f} m away on average, the street {apart_m.max():.0f} m long"
    )
    print("  within      recall@1  recall@5    a guess  at most")
    for radius in RADII_M:
        hits = ranked < radius
        print(
            f"  {radius:>4g} m {hits[:, :1].any(1).mean():>13.3f} {hits[:, :5].any(1).mean():>9.3f} "
            f"{(apart_m < radius).mean():>10.3f} {(apart_m < radius).any(1).mean():>8.3f}"
        )
    print(f"  median distance of the first answer {np.median(ranked[:, 0]):.1f} m")


if __name__ == "__main__":
    main()
