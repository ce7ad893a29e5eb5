from .export import ExportReport as ExportReport
from .folder import (
    Checkpoint as Checkpoint,
)
from .folder import (
    read_checkpoint as read_checkpoint,
)
from .folder import (
    write_checkpoint as write_checkpoint,
)
from .publish import pull_checkpoint as pull_checkpoint
from .publish import push_checkpoint as push_checkpoint
from .published import read_model as read_model
from .resolve import ModelSource as ModelSource
from .resolve import resolve_model as resolve_model
