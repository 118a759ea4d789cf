"""Faults on whole fleets: real worker commands, real brokers and databases, an outsider's ledger.

``ledger`` knows what was sent and what must become of it; ``brokers`` and ``tables`` read what did become
of it with other people's clients; ``fleet`` starts, kills and freezes workers; ``proxy`` cuts, holds and
mutes connections; ``scene`` binds them and writes the report; ``campaign`` runs them for long.
"""
