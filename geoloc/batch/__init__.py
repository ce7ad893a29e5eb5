"""Any number of images as shards: where they come from, and what is done with one shard of them."""
