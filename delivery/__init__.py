"""Brings finished files to one place: a folder, an SFTP server, S3, or what else fsspec knows. The door is this module.

`folder`, `sftp`, `s3` and `other` are the peers, each behind the same few verbs; `upload`
says what is sent and when it counts; `deliveries` runs it beside the downloads, and remembers in `notes` what a kill
must not undo.
"""

from __future__ import annotations

from delivery.deliveries import Deliveries
from delivery.folder import folder_of
from delivery.reins import Reins
from delivery.targets import opener

__all__ = ["Deliveries", "Reins", "folder_of", "opener"]
