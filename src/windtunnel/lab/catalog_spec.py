"""The `catalog` part of a scenario: models and GPUs of its own, beside the shipped ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from windtunnel.errors import ConfigError
from windtunnel.lab import locate
from windtunnel.lab.kinds import Spec
from windtunnel.lab.places import place, placed
from windtunnel.lab.yamlfile import Document
from windtunnel.sim.catalog import SHIPPED, Catalog

Facts = dict[str, dict[str, Any]]


class CatalogFile(Spec):
    """A YAML file with `models:` or `gpus:`."""

    path: str = Field(description="Beside the scenario.")


class CatalogSpec(Spec):
    """Entries by name. One of a shipped name changes that: what it leaves out stays as shipped. Later ones win, those written here last."""

    files: tuple[CatalogFile, ...] = ()
    models: Facts = Field(default={}, description="Architectures: params, layers, hidden, ffn, heads, kv_heads, head_dim, vocab, ... , source.")
    gpus: Facts = Field(default={}, description="GPUs: memory_bytes, memory_bw (bytes/s), flops by dtype, power_w, gpus_per_node, ... , source.")

    def build(self, base: Path) -> Catalog:
        """The catalogue; the shipped one if nothing is changed. Raises ConfigFileError, ConfigUnknownKeyError."""
        if not (self.files or self.models or self.gpus):
            return SHIPPED
        return Catalog.load([locate.data_file(file.path, base) for file in self.files], {"models": self.models, "gpus": self.gpus})

    def wrong_entries(self, base: Path, doc: Document) -> Iterator[ConfigError]:
        """Entries that cannot be: unknown keys, missing facts, wrong magnitudes."""
        try:
            with placed(doc):
                catalog = self.build(base)
        except ConfigError as error:
            if not error.message.removeprefix("--set ").startswith("catalog"):
                error.where = error.where or doc.where(("catalog",))
            yield error
            return
        for kind, find in (("models", catalog.model), ("gpus", catalog.gpu)):
            for name in getattr(self, kind):
                try:
                    find(name)
                except ConfigError as error:
                    label, error.where = place(doc, ("catalog", kind, name))
                    error.message = f"{label}catalog.{error.message}"
                    yield error
