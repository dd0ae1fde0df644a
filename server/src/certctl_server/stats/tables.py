"""How many there are of what."""

from piccolo.columns import BigInt, Varchar
from piccolo.table import Table


class Tally(Table):
    """One count; on PostgreSQL without what ``tally_delta`` holds. The real key is (dimension, value, detail).

    Written by triggers and by ``certctl_server.tally`` alone, read by way of the view ``tally_now``.
    """

    dimension = Varchar(length=64, primary_key=True)
    value = Varchar(length=128)
    detail = Varchar(length=64)
    n = BigInt()
