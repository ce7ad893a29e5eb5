from .aerial.references import AerialReferences as AerialReferences
from .aerial.references import AerialSettings as AerialSettings
from .build import BuildReport as BuildReport
from .database import ReferenceDatabase as ReferenceDatabase
from .locations import LocationReferences as LocationReferences
from .rows import ReferenceRows as ReferenceRows
from .street import StreetReferences as StreetReferences
