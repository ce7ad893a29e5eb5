from .backbone import Backbone as Backbone
from .config import (
    AggregationConfig as AggregationConfig,
)
from .config import (
    BackboneConfig as BackboneConfig,
)
from .config import (
    CellHeadConfig as CellHeadConfig,
)
from .config import (
    EmbeddingHeadConfig as EmbeddingHeadConfig,
)
from .config import (
    NetworkConfig as NetworkConfig,
)
from .config import (
    OffsetHeadConfig as OffsetHeadConfig,
)
from .config import (
    RegressionHeadConfig as RegressionHeadConfig,
)
from .network import GeoNetwork as GeoNetwork
from .network import NetworkOutput as NetworkOutput
from .runner import Runner as Runner
