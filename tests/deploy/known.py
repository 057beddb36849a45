"""The variables that the two programs read: Compose and Kubernetes may set no other."""

from pathlib import Path

from faregate.settings import Settings

FAREGATE = frozenset(name.upper() for name in Settings.model_fields)
_LINES = (Path(__file__).parent / "open-webui-variables.txt").read_text(encoding="utf-8").splitlines()
OPEN_WEBUI = frozenset(line.split()[0] for line in _LINES if line and not line.startswith("#"))
