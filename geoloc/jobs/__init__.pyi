from .shards import Shard as Shard
from .shards import ShardJob as ShardJob
from .work import Work as Work
