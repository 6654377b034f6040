"""Writing the records of a split as they come, in order and in constant memory.

The writer of tensorflow-datasets gathers a split to shuffle it, and needs tensorflow above a gigabyte.
"""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.core.naming import ShardedFileTemplate

SHARD_BYTES = 512 << 20  # a file is closed when it holds this much
ONE_RECORD_A_GROUP = "group_size:1"  # as tensorflow-datasets writes them: each can be read alone


def write_split(
    examples: Iterable[Mapping[str, Any]],
    features: tfds.features.FeaturesDict,
    template: ShardedFileTemplate,
) -> tfds.core.SplitInfo:
    """Writes the records of a split as array_record files.

    Args:
      examples: in the order in which they are to be read; taken one by one.
      features: what they consist of.
      template: of the names of the files.

    Returns:
      The description of the split for tensorflow-datasets.
    """
    serializer = ExampleSerializer(features.get_serialized_info())
    lengths: list[int] = []
    total = in_shard = 0
    writer = None
    try:
        for example in examples:
            if writer is None:
                # Opened when a record is at hand, so that no file is empty.
                writer = ArrayRecordWriter(_unfinished(template, len(lengths)), ONE_RECORD_A_GROUP)
                lengths.append(0)
                in_shard = 0
            record = serializer.serialize_example(features.encode_example(example))
            writer.write(record)
            lengths[-1] += 1
            in_shard += len(record)
            total += len(record)
            if in_shard >= SHARD_BYTES:
                writer.close()
                writer = None
    finally:
        if writer is not None:
            writer.close()
    # The number of files is part of their names, and known only now.
    for index, path in enumerate(template.sharded_filepaths(len(lengths))):
        pathlib.Path(_unfinished(template, index)).rename(path)
    return tfds.core.SplitInfo(
        name=template.split, shard_lengths=lengths, num_bytes=total, filename_template=template
    )


def _unfinished(template: ShardedFileTemplate, index: int) -> str:
    return str(template.data_dir / f"{template.split}-{index:05}.unfinished")
