"""Atomic writes of files and folders, manifests with sha256 of each file, safe paths. POSIX only.

After a kill or a power cut, a file or folder is the old one or the new one, never a mixture.
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
