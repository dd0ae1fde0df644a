"""Rules for certificates, and what breaks them."""

from piccolo.columns import Boolean, Text, Timestamptz, Varchar
from piccolo.table import Table

from certctl_server.resource import Resource


class PolicyRule(Resource):
    """One rule; its config is JSON, with the real names of its keys."""

    type = Varchar(length=32)
    config = Text(default="{}")
    severity = Varchar(length=16, default="Warning")
    enabled = Boolean(default=True)


class PolicyViolation(Table):
    """That a certificate breaks a rule, or did: at most one is open of the two. It goes with its rule."""

    id = Varchar(length=128, primary_key=True)
    certificate_id = Varchar(length=128)
    rule_id = Varchar(length=128)
    message = Text(default="")
    severity = Varchar(length=16)
    created_at = Timestamptz()
    resolved_at = Timestamptz(null=True, default=None)
