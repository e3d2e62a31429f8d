"""The packages of this environment against the known vulnerabilities of PyPI's advisory database: `make audit`.

Exit code 0: none is known. 1: some are, each with the versions that mend it. 2: nobody knows, since the database can't
be reached or pip-audit can't run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FREEZE = ["-m", "pip", "freeze", "--exclude-editable", "--disable-pip-version-check"]  # without pip itself
AUDIT = ["-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--no-deps", "--disable-pip"]


def audited() -> tuple[list[dict[str, Any]], str]:
    """What pip-audit says of each package; nothing and its complaint if it could not ask."""
    with tempfile.TemporaryDirectory() as folder:
        installed = Path(folder) / "requirements.txt"
        frozen = subprocess.run([sys.executable, *FREEZE], capture_output=True, text=True, timeout=600, check=True)
        installed.write_text(frozen.stdout, "utf-8")
        command = [sys.executable, *AUDIT, "--requirement", str(installed)]
        found = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(found.stdout)["dependencies"]
    except (ValueError, KeyError):
        lines = [line.strip() for line in found.stderr.splitlines() if line.strip()]
        return [], lines[-1] if lines else f"exit code {found.returncode} and not a word"
    return packages, ""


def report(packages: list[dict[str, Any]], complaint: str) -> int:
    """Print what was found; the exit code."""
    looked_at = [package for package in packages if "skip_reason" not in package]
    if not looked_at and not complaint:
        complaint = f"pypi.org tells nothing of these {len(packages)}; does this network lead to a mirror of it?"
    if complaint:
        print(f"the packages could not be audited: {complaint}", file=sys.stderr)
        return 2
    wrong = [package for package in looked_at if package["vulns"]]
    for package in wrong:
        for known in package["vulns"]:
            mended = ", ".join(known["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {known['id']}, mended in {mended}")
    for package in packages:
        if "skip_reason" in package:
            print(f"{package['name']} was not looked at: {package['skip_reason']}")
    print(f"{len(looked_at)} packages, {len(wrong)} with known vulnerabilities, {datetime.now(UTC):%Y-%m-%d}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(report(*audited()))
