"""One database, two dialects: SQLite for one process, PostgreSQL for many. Everything else is the same code."""

from certctl_server.db.clock import now as now
from certctl_server.db.engines import UNREACHABLE as UNREACHABLE
from certctl_server.db.session import Row as Row
from certctl_server.db.session import after_commit as after_commit
from certctl_server.db.session import as_moment as as_moment
from certctl_server.db.session import close as close
from certctl_server.db.session import connect as connect
from certctl_server.db.session import dialect as dialect
from certctl_server.db.session import fetch as fetch
from certctl_server.db.session import follow_clock as follow_clock
from certctl_server.db.session import insert_last as insert_last
from certctl_server.db.session import moment as moment
from certctl_server.db.session import present as present
from certctl_server.db.session import text_of as text_of
from certctl_server.db.session import transaction as transaction
from certctl_server.db.session import when_clock_jumps as when_clock_jumps
from certctl_server.db.sql import Sql as Sql
from certctl_server.db.sql import insert_rows as insert_rows
from certctl_server.db.sql import update_rows as update_rows
from certctl_server.db.sql import with_rows as with_rows
from certctl_server.db.together import Once as Once
from certctl_server.db.together import Together as Together
from certctl_server.db.together import once as once
