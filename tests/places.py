"""Where tests find what they read: the checkout, and the files that are kept for them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
PARITY = FIXTURES / "parity"
"""A folder per model; fixtures/parity/README.md says what every case is and how it was made."""
BAGEL = PARITY / "bagel"
"""BAGEL's cases, folders that `reca-fast verify` replays."""
OPENUNI = PARITY / "openuni"
"""OpenUni's cases, of the same form."""
SHOWO = PARITY / "showo"
"""Show-o's cases, of the same form."""
