"""Published systems' checkpoints in terms of ours: one thin file each; plain tensor renaming, none of their code."""
