"""HTML maps of predictions and of table rows.

prediction = model.localize("photo.jpg")
write_prediction_map(prediction, "map.html", image="photo.jpg")
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from geoloc.localize.table import make_row
from geoloc.view.map_html import MapPoint, write_map

if TYPE_CHECKING:
    from geoloc.images import ImageSource
    from geoloc.localize.table import Row
    from geoloc.posterior.prediction import Prediction

THUMBNAIL_PX = 160


def write_prediction_map(
    prediction: Prediction, path: str | Path, image: ImageSource | None = None, *, name: str | None = None
) -> None:
    """Write one prediction as a map: its point, circles, candidates, and the posterior as a heatmap.

    The file needs no network, and opens with the prediction chosen.

    Args:
        prediction: of `Geolocalizer.localize`.
        path: of the HTML file; an existing file is replaced atomically.
        image: the photo, embedded as a thumbnail of 160 px; None embeds none.
        name: label on the map; None is the photo's file name, or "image".

    Raises:
        BadImageError: the photo cannot be decoded.
    """
    if name is None:
        name = os.path.basename(image) if isinstance(image, str | Path) else "image"
    thumbnail = None if image is None else thumbnail_jpeg(image)
    point = point_of_row(make_row(name, prediction), thumbnail)
    write_map(path, [point], title=f"Predicted place of {name}")


def point_of_row(row: Row, thumbnail: bytes | None = None) -> MapPoint:
    """Map point of a table row, with its posterior if the row has one."""
    if row["error"] is not None:
        return MapPoint(row["id"], None, error=row["error"])
    radii = {50: row["radius_50_km"], 90: row["radius_90_km"]}
    has_truth = row.get("truth_latitude") is not None
    return MapPoint(
        row["id"],
        (row["latitude"], row["longitude"]),
        radius_km={percent: radius for percent, radius in radii.items() if radius is not None},
        place=row["place"],
        probability=row["probability"],
        candidates=[(c["lat"], c["lon"], c["probability"]) for c in row["candidates"]],
        posterior=row.get("posterior", ()),
        thumbnail_jpeg=thumbnail,
        truth_latlon_deg=(row["truth_latitude"], row["truth_longitude"]) if has_truth else None,
    )


def thumbnail_jpeg(source: ImageSource) -> bytes:
    """JPEG thumbnail, at most 160 px wide and high.

    Raises:
        BadImageError: the image cannot be decoded.
    """
    from PIL import Image

    from geoloc.images import decode_image

    image = Image.fromarray(decode_image(source, min_side_px=THUMBNAIL_PX))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    data = BytesIO()
    image.save(data, "JPEG", quality=80)
    return data.getvalue()
