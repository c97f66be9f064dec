"""Folders that hold a model: written, found and read back; and those of other formats, which importers read."""

from hybrid.checkpoints.importers import IMPORTERS
from hybrid.checkpoints.stored_model import Importer, StoredModel

__all__ = ["IMPORTERS", "Importer", "StoredModel"]
