"""Files that are whole or absent: atomic writes, folders that are swapped at once, manifests, safe paths.

A process killed at any moment leaves the old file or folder or the new one, never a mixture; so does a power
cut, because contents reach the disk before the name does. A manifest lists the size and sha256 of each file
beside it: it is the only thing that notices a flipped bit in a tensor. POSIX only. Knows nothing about what
the files contain.

atomic.py     one file
folders.py    a whole folder
manifests.py  what lies in a folder, and whether it is still that
"""

from geoloc.files.atomic import atomic_write, fsync_folder
from geoloc.files.folders import MANIFEST_NAME, recover_folder, replace_folder
from geoloc.files.manifests import (
    MANIFEST_SCHEMA_VERSION,
    MAX_MANIFEST_BYTES,
    manifest_bytes,
    manifest_digest,
    parse_manifest,
    read_manifest,
    safe_join,
    save_manifest,
    sha256_of,
    verify_manifest,
    write_manifest,
)

__all__ = [
    "MANIFEST_NAME",
    "MANIFEST_SCHEMA_VERSION",
    "MAX_MANIFEST_BYTES",
    "atomic_write",
    "fsync_folder",
    "manifest_bytes",
    "manifest_digest",
    "parse_manifest",
    "read_manifest",
    "recover_folder",
    "replace_folder",
    "safe_join",
    "save_manifest",
    "sha256_of",
    "verify_manifest",
    "write_manifest",
]
