from .find import (
    ImageFile as ImageFile,
)
from .find import (
    ImageList as ImageList,
)
from .find import (
    find_images as find_images,
)
from .find import (
    walk_images as walk_images,
)
from .metadata import read_metadata as read_metadata
from .positioned import Photo as Photo
from .positioned import Photos as Photos
from .positioned import open_photos as open_photos
from .sources import SourceImage as SourceImage
from .sources import read_images as read_images
