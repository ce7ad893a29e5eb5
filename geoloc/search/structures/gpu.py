"""FAISS's structures on a GPU, where FAISS is built for it."""

import threading
from typing import Any, Final

from geoloc.errors import ConfigError

MAX_GPU_LISTS: Final = 2048  # that FAISS reads for a query on a GPU
MAX_GPU_ASKED: Final = 2048  # rows that it returns


class GpuIndex:
    """An index on a GPU, for one thread at a time: its scratch memory is shared.

    Args:
        index: on the CPU.
        device: a CUDA device of torch, such as "cuda" or "cuda:1".

    Raises:
        ConfigError: FAISS cannot have this index on a GPU.
    """

    def __init__(self, index: Any, device: str) -> None:
        import faiss

        number = int(device.partition(":")[2] or 0)
        self._resources = faiss.StandardGpuResources()
        try:
            self._index = faiss.index_cpu_to_gpu(self._resources, number, index)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(
                f"FAISS cannot put its {type(index).__name__} on {device} ({reason}); use structure='exact' there"
            ) from None
        self._lock = threading.Lock()

    def __enter__(self) -> Any:
        self._lock.acquire()
        return self._index

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def on_device(index: Any, device: str) -> GpuIndex | None:
    """The index on a CUDA device; None on the CPU, and where FAISS is not built for GPUs."""
    import faiss

    if device.partition(":")[0] != "cuda" or faiss.get_num_gpus() == 0:
        return None
    return GpuIndex(index, device)
