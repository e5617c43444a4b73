"""Make the passwords of the compose stack once: `python3 make_secrets.py DIR`.

Writes DIR/redis/users.acl and the probe's and the exporter's password, DIR/worker/redis__url and DIR/operator/redis__url.
A second run finds them and changes nothing. Only the standard library: it runs before anything else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import sys
from pathlib import Path

TEMPLATE = Path(os.environ.get("USERS_ACL", "/deploy/redis/users.acl"))
REDIS_HOST = os.environ.get("REDIS_HOST", "redis:6379")
REDIS_UID = int(os.environ.get("REDIS_UID", "999"))
WORKER_UID = 10001
EXPORTER_UID = 59000  # the user of the redis_exporter image


def write(path: Path, text: str, uid: int) -> None:
    """Readable by its one reader only. Without the right to change owners (a rehearsal as a plain user) it stays ours."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text, encoding="ascii")
    if os.geteuid() == 0:
        os.chown(path, uid, uid)
    path.chmod(0o400)


def main(directory: Path) -> None:
    acl_file = directory / "redis" / "users.acl"
    if acl_file.exists():
        print("secrets exist, nothing to do")
        return
    template = TEMPLATE.read_text(encoding="utf-8")
    passwords = {name: secrets.token_urlsafe(32) for name in re.findall(r"#\{(\w+)\}", template)}
    hashed = {name: hashlib.sha256(password.encode()).hexdigest() for name, password in passwords.items()}
    write(directory / "redis" / "probe_password", passwords["probe"], REDIS_UID)
    # The exporter has looked its password up with and without the user in the address, depending on its version.
    exporter = {f"redis://{user}{REDIS_HOST}": passwords["exporter"] for user in ("", "exporter@")}
    write(directory / "redis" / "exporter_password.json", json.dumps(exporter), EXPORTER_UID)
    for user in ("worker", "operator"):
        write(directory / user / "redis__url", f"redis://{user}:{passwords[user]}@{REDIS_HOST}/0", WORKER_UID)
    # Last: while it is missing, an interrupted run is repeated.
    write(acl_file, re.sub(r"#\{(\w+)\}", lambda found: "#" + hashed[found[1]], template), REDIS_UID)
    print("secrets written")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
