from .continents import density_class as density_class
from .near import rows_within_m as rows_within_m
from .places import (
    NearestPlaces as NearestPlaces,
)
from .places import (
    Place as Place,
)
from .places import (
    Places as Places,
)
from .places import (
    load_places as load_places,
)
from .tiles import Tile as Tile
from .utm import (
    UtmCoordinates as UtmCoordinates,
)
from .utm import (
    from_utm as from_utm,
)
from .utm import (
    to_utm as to_utm,
)
from .utm import (
    utm_epsg as utm_epsg,
)
