from __future__ import annotations

import pytest
from certctl_agent.proposal import nginx_directories, propose


def printed(root):
    return f"""
# configuration file {root}/nginx.conf:
http {{
    server {{ ssl_certificate {root}/tls/a.crt; ssl_certificate_key "{root}/private/a.key"; }}
    server {{
        ssl_certificate      conf.d/b.crt;
        ssl_certificate_key  /etc/b.key;
        # ssl_certificate {root}/comment/c.crt;
        ssl_certificate $host.crt;
        ssl_certificate_key /nowhere/at/all/d.key;
    }}
}}
"""


@pytest.fixture
def root(tmp_path):
    for name in ("tls", "private", "conf.d", "comment"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_the_directories_that_nginx_reads_are_proposed_unless_they_are_too_wide(root):
    text = printed(root).replace("{ ssl_certificate ", "{\nssl_certificate ").replace("; ssl", ";\nssl")
    assert [path.name for path in nginx_directories(text)] == ["tls", "private", "conf.d"]


def test_commands_are_proposed_for_the_servers_found(root):
    found = propose(find={"nginx": "/usr/sbin/nginx"}.get, ask=lambda _: "")
    assert found.services == ("nginx",)
    assert found.commands["nginx-check"] == ("nginx", "-t")
    assert found.commands["nginx-reload"] == ("nginx", "-s", "reload")


def test_a_machine_without_servers_gets_an_empty_proposal():
    found = propose(find=lambda _: None, ask=lambda _: "")
    assert (found.services, found.directories, found.commands) == ((), (), {})
