"""What a merge is made of: the command, who has a processor, the process that starts ffmpeg, and the proofs."""

from merging.command import (
    Task,
    ffmpeg_arguments,
    list_of_chapters,
    list_of_chapters_path,
    segment_list,
    segment_list_path,
    without_extras,
)
from merging.proof import Inputs, check_inputs, check_output, read_tag, write_failure
from merging.starter import NICENESS, PROGRAM, pack_request
from merging.turns import SharedRunFailed, Turns

__all__ = [
    "NICENESS",
    "PROGRAM",
    "Inputs",
    "SharedRunFailed",
    "Task",
    "Turns",
    "check_inputs",
    "check_output",
    "ffmpeg_arguments",
    "list_of_chapters",
    "list_of_chapters_path",
    "pack_request",
    "read_tag",
    "segment_list",
    "segment_list_path",
    "without_extras",
    "write_failure",
]
