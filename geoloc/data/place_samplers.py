"""Orders for place recognition: places x images (GSV-Cities), and images by class (CosPlace).

    order = PlacesTimesImages(place_ids, images_per_place=4, seed=1, group_ids=city_ids)
    SampleStream(table, load, order, batch_size=100 * 4, labels={"place": place_ids})      # 100 places x 4 photos

See `geoloc.data.samplers` for the protocol `Order`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError

IntArray = NDArray[np.int64]
Choice = Literal["random", "newest"]


class PlacesTimesImages:
    """Order with every place once an epoch, with K consecutive photos of it (GSV-Cities, Ali-bey et al., 2022).

    A batch of P K photos has P places. With groups, such as cities, places of a group are consecutive, so that most
    batches are of one city and have harder negatives. Places and groups are shuffled in every epoch.

    Args:
        place_ids: (n,) place of each photo, -1 is unknown and left out.
        images_per_place: K.
        seed: random seed.
        min_images_per_place: places with fewer are left out; K by default.
        choice: K "random" photos of a place, resampled in every epoch, or the K "newest".
        captured_at: (n,) capture times in seconds, NaN unknown (oldest); needed for "newest".
        group_ids: (n,) group of each photo; None mixes all places.

    Raises:
        ConfigError: no place has enough photos, K is invalid, or capture times are missing.
    """

    def __init__(
        self,
        place_ids: ArrayLike,
        images_per_place: int,
        seed: int,
        *,
        min_images_per_place: int | None = None,
        choice: Choice = "random",
        captured_at: ArrayLike | None = None,
        group_ids: ArrayLike | None = None,
    ) -> None:
        fewest = images_per_place if min_images_per_place is None else min_images_per_place
        if not 1 <= images_per_place <= fewest:
            raise ConfigError(
                f"images_per_place is {images_per_place} and min_images_per_place {fewest}: the first must be at least "
                "1, and the second at least as large"
            )
        places = np.asarray(place_ids, np.int64)
        if choice == "newest" and (captured_at is None or np.isnan(np.asarray(captured_at)).all()):
            raise ConfigError(
                "choice is 'newest', but no photo has a capture time (captured_at): add capture times, or choose "
                "'random'"
            )
        _, place, counts = np.unique(places, return_inverse=True, return_counts=True)
        kept = np.flatnonzero((counts[place] >= fewest) & (places >= 0))
        if not len(kept):
            known = places[places >= 0]
            largest = np.bincount(known).max() if len(known) else 0
            raise ConfigError(
                f"no place has min_images_per_place={fewest} photos: {len(known):,} of {len(places):,} photos have a "
                f"place, there are {len(np.unique(known)):,} places, and the largest has {largest}: lower "
                "min_images_per_place and images_per_place, or add photos of each place"
            )
        self._rows = kept[np.argsort(place[kept], kind="stable")]  # place by place
        _, self._starts, self._counts = np.unique(place[self._rows], return_index=True, return_counts=True)
        first = self._rows[self._starts]
        groups = np.zeros(len(places), np.int64) if group_ids is None else np.asarray(group_ids, np.int64)
        self._group_of_place = np.unique(groups[first], return_inverse=True)[1].ravel()
        self._age: NDArray[np.float64] | None = None
        if choice == "newest":
            times = np.asarray(captured_at, np.float64)[self._rows]
            self._age = -np.where(np.isnan(times), -np.inf, times)
        self._images_per_place, self._seed = images_per_place, seed

    @property
    def num_places(self) -> int:
        """Number of places in an epoch."""
        return len(self._starts)

    def __len__(self) -> int:
        return self.num_places * self._images_per_place

    def __call__(self, epoch: int) -> IntArray:
        """Indices of an epoch."""
        rng = np.random.default_rng([self._seed, epoch])
        group_rank = rng.permutation(self._group_of_place.max() + 1)[self._group_of_place]
        order = np.lexsort((rng.permutation(self.num_places), group_rank))
        number = rng.random(len(self._rows)) if self._age is None else self._age
        place = np.repeat(np.arange(self.num_places), self._counts)
        chosen = self._rows[np.lexsort((number, place))]
        picked = self._starts[order][:, None] + np.arange(self._images_per_place)
        return np.asarray(chosen[picked.ravel()])


class ImageOfClass:
    """Order with every class once per pass, in random order, with a random photo of each (CosPlace).

    Args:
        class_ids: (n,) class of each photo, counted from 0 without gaps; -1 is none.
        seed: random seed.
        passes: passes over all classes in an epoch; more than one if a batch is larger than the number of classes.

    Raises:
        ConfigError: no photo has a class.
    """

    def __init__(self, class_ids: ArrayLike, seed: int, passes: int = 1) -> None:
        classes = np.asarray(class_ids, np.int64)
        self._by_class = np.argsort(classes, kind="stable")[np.sum(classes < 0) :]
        if not len(self._by_class):
            raise ConfigError(
                f"none of {len(classes):,} photos has a class: lower the number of photos a class needs"
            )
        self._counts = np.bincount(classes[self._by_class])
        self._starts = np.cumsum(self._counts) - self._counts
        self._seed, self._passes = seed, passes

    def __len__(self) -> int:
        return len(self._counts) * self._passes

    def __call__(self, epoch: int) -> IntArray:
        """Indices of an epoch."""
        rng = np.random.default_rng([self._seed, epoch])
        order = np.concatenate([rng.permutation(len(self._counts)) for _ in range(self._passes)])
        return np.asarray(self._by_class[self._starts[order] + rng.integers(0, self._counts[order])])
