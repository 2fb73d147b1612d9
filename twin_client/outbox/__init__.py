"""The outbox: every record on the disk before anything else happens to it, and there until the twin says it has it.

    with outbox.transaction() as t:
        entries = t.append(records)
        t.remember("rules", state)

An epoch is born with the file, and its numbers are never given twice. Rows leave only by `acknowledge`, and by value
where room is short, which leaves a Gap that names them. An outbox belongs to the one thread that opened it. In its
folder lie `outbox/rows.sqlite`, `outbox.marks` with what must outlive that file, and up to two `outbox.corrupt-N`,
damaged files that were set aside.
"""

from twin_client.outbox.commit import Transaction
from twin_client.outbox.keeper import Limits, Reborn
from twin_client.outbox.losses import Holding
from twin_client.outbox.outbox import Outbox
from twin_client.outbox.rows import Rows, Stored
from twin_client.outbox.tables import OutboxFull

__all__ = ["Holding", "Limits", "Outbox", "OutboxFull", "Reborn", "Rows", "Stored", "Transaction"]
