"""Whether the Hugging Face hub can be reached. Its own libraries try for half a minute before they give up."""

import os
import socket
import sys
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

SECONDS = 2.0
"""How long an answer is waited for."""


def endpoint() -> str:
    """Address of the hub, which the environment variable HF_ENDPOINT of its libraries may change."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def go_offline_unless_reachable() -> bool:
    """Make the hub's libraries read their cache alone, when HF_HUB_OFFLINE is set or nobody answers within SECONDS.

    Call it before they are used. Returns whether the hub will be asked.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE") and _answers():
        return True
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            sys.modules[name].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    return False


def may_be_cached(name: str) -> bool:
    """Whether the caches of the hub's libraries hold anything of the dataset owner/name. They need not be imported."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    prepared = os.environ.get("HF_DATASETS_CACHE") or f"{home}/datasets"
    owner, _, rest = name.partition("/")
    places = [Path(hub, f"datasets--{owner}--{rest}"), *Path(os.path.expanduser(prepared)).glob(f"{owner}___*")]
    return any(Path(os.path.expanduser(place)).exists() for place in places)


def _answers() -> bool:
    """Whether something accepts a connection at the hub's address, or at the proxy on the way to it."""
    hub = urlsplit(endpoint())
    proxy = urllib.request.getproxies().get(hub.scheme)
    if proxy and not urllib.request.proxy_bypass(hub.hostname or ""):
        hub = urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    answered = threading.Event()

    def connect() -> None:
        port = hub.port or (443 if hub.scheme == "https" else 80)
        try:
            socket.create_connection((hub.hostname, port), timeout=SECONDS).close()
        except (OSError, UnicodeError):
            return
        answered.set()

    # A thread, because no time limit holds for the look-up of a name.
    asking = threading.Thread(target=connect, daemon=True)
    asking.start()
    asking.join(SECONDS)
    return answered.is_set()
