"""Which files make a bundle, and which versions may stand in one together?

File names never carry versions: the payload's `schema_version` is the authority, and the manifest
lists what the bundle expects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
ArtifactName: TypeAlias = Literal[
    "manifest", "raw_event", "layout", "derived_event", "motif_ledger", "contingency"
]
BundleVersion: TypeAlias = Literal["v0.1.0", "v0.2.0"]

# CONTRACT SURFACE: the files of a bundle
MANIFEST_FILE = "manifest.json"
RAW_TRACE_FILE = "raw_trace.ndjson"
LAYOUT_FILE = "layout.json"
DERIVED_FILE = "derived.ndjson"
MOTIF_LEDGER_FILE = "motif_ledger.json"
CONTINGENCY_FILE = "contingency.json"

ARTIFACT_NAMES: tuple[ArtifactName, ...] = (
    "manifest",
    "raw_event",
    "layout",
    "derived_event",
    "motif_ledger",
    "contingency",
)
BUNDLE_VERSIONS: tuple[BundleVersion, ...] = ("v0.1.0", "v0.2.0")
LAYOUT_VERSION = "layout/v0.1.0"
DERIVED_VERSION = "derived/v0.1.0-provisional"
MOTIF_LEDGER_VERSION = "motif_ledger/v0.1.0-provisional"
CONTINGENCY_VERSION = "contingency/v0.1.0-provisional"


def artifact_versions(version: BundleVersion) -> dict[str, str]:
    """Return `artifact_versions` of a manifest: what its bundle expects of each artifact."""
    return {
        "raw_event_schema_version": f"raw/{version}",
        "derived_event_schema_version": DERIVED_VERSION,
        "layout_schema_version": LAYOUT_VERSION,
        "motif_ledger_schema_version": MOTIF_LEDGER_VERSION,
        "contingency_schema_version": CONTINGENCY_VERSION,
    }


def payload_version(artifact: ArtifactName, payload: object) -> BundleVersion:
    """Return the version whose schema a payload is held against.

    Only manifests and raw events have a v0.2.0; whatever does not say so is held against v0.1.0,
    whose schema then names the version it expects.
    """
    name = {"manifest": "manifest/v0.2.0", "raw_event": "raw/v0.2.0"}.get(artifact)
    if name and isinstance(payload, Mapping) and payload.get("schema_version") == name:
        return "v0.2.0"
    return "v0.1.0"
