"""What the rows that clients name have in common."""

from piccolo.columns import Timestamptz, Varchar
from piccolo.table import Table


class Resource(Table):
    """A row that clients name: their id or ours, a name, and the two times that we keep."""

    id = Varchar(length=128, primary_key=True, default="")
    name = Varchar(length=255, default="")
    created_at = Timestamptz()
    updated_at = Timestamptz()
