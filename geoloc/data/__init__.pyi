from .layouts.open import Layout as Layout
from .layouts.open import open_layout as open_layout
from .sample import Sample as Sample
from .sample import SampleTable as SampleTable
from .samplers import Shuffled as Shuffled
from .samplers import SpatialBuckets as SpatialBuckets
from .shards import ShardSet as ShardSet
from .splits import (
    Split as Split,
)
from .splits import (
    split_by_cells as split_by_cells,
)
from .splits import (
    split_by_sequence as split_by_sequence,
)
from .splits import (
    split_osv5m as split_osv5m,
)
from .stream import SampleStream as SampleStream
