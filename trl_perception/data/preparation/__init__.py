"""Converts a published data set on disk to checked parquet shards with a card: `trl-perception prepare`."""

from .folder import prepared_shards
from .options import PrepareOptions
from .run import prepare
from .summary import as_text

__all__ = ["PrepareOptions", "as_text", "prepare", "prepared_shards"]
