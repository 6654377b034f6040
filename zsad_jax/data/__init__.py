"""Datasets in one schema, and one loader for all of them."""

from zsad_jax.data.dataset import Dataset, ImageBatch, Sample, Samples
from zsad_jax.data.folder import find_images, read_folder
from zsad_jax.data.issues import Issue
from zsad_jax.data.loader import load_batches
from zsad_jax.data.meta_json import read_meta_json
from zsad_jax.data.open import check_available, is_available, open_dataset
from zsad_jax.data.preprocess import Preprocess, UnreadableImage
from zsad_jax.data.protocols import prompt_name

__all__ = [
    # Datasets
    "open_dataset",
    "is_available",
    "check_available",
    "read_folder",
    "read_meta_json",
    "find_images",
    # The schema
    "Dataset",
    "Sample",
    "Samples",
    "Issue",
    "prompt_name",
    # Batches
    "load_batches",
    "ImageBatch",
    "Preprocess",
    "UnreadableImage",
]
