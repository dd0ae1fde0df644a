from pathlib import Path
from typing import Literal

import pytest
from certctl_core.config import ConnectorConfig
from certctl_core.errors import MisconfiguredError
from certctl_server.connectors.config import HIDDEN, files, hide, merged, seal, sealed_keys, unseal
from certctl_server.sealing import Cipher, is_sealed, place
from pydantic import AliasChoices, Field, SecretStr

HERE = place("issuer", "iss-1", "config")
CIPHER = Cipher([b"k" * 32])


class Login(ConnectorConfig):
    user: str = Field(description="Name")
    password: SecretStr = Field(description="Password")


class Mtls(ConnectorConfig):
    mode: Literal["mtls"] = Field("mtls", description="Way")
    cert: Path = Field(description="File")


class Token(ConnectorConfig):
    mode: Literal["token"] = Field("token", description="Way")
    token: SecretStr = Field(description="Token")


class Config(ConnectorConfig):
    url: str = Field(validation_alias=AliasChoices("url", "addr"), description="Address")
    key: SecretStr | None = Field(None, validation_alias=AliasChoices("key", "api_key"), description="Key")
    login: Login | None = Field(None, description="Login")
    auth: Mtls | Token | None = Field(None, discriminator="mode", description="Authentication")


RAW = {
    "addr": "https://ca",
    "api_key": "k3y",
    "login": {"user": "ada", "password": "pässword"},
    "auth": {"mode": "token", "token": "t0ken"},
    "strange": {"kept": ["as", "it", "is"]},
}


def test_secrets_are_sealed_by_any_name_at_any_depth_and_open_again():
    sealed = seal(Config, RAW, CIPHER, HERE)
    assert (sealed["addr"], sealed["login"]["user"]) == (RAW["addr"], "ada")
    assert all(map(is_sealed, [sealed["api_key"], sealed["login"]["password"], sealed["auth"]["token"]]))
    assert unseal(sealed, CIPHER, HERE) == RAW
    assert seal(Config, sealed, CIPHER, HERE) == sealed


def test_what_a_connector_does_not_know_may_be_a_secret_misspelt():
    sealed = seal(Config, RAW, CIPHER, HERE)
    assert all(map(is_sealed, sealed["strange"]["kept"]))
    assert hide(Config, sealed)["strange"] == {"kept": [HIDDEN] * 3}


def test_readers_see_that_there_is_a_secret_and_empty_ones_as_empty():
    shown = hide(Config, seal(Config, {**RAW, "key": ""}, CIPHER, HERE))
    assert (shown["api_key"], shown["key"], shown["addr"]) == (HIDDEN, "", "https://ca")
    assert (shown["login"], shown["auth"]) == ({"user": "ada", "password": HIDDEN}, {"mode": "token", "token": HIDDEN})


def test_every_text_of_a_kind_that_is_not_installed_is_a_secret():
    raw = {"a": "b", "n": 5, "list": ["x", {"y": "z"}], "empty": ""}
    sealed = seal(None, raw, CIPHER, HERE)
    assert hide(None, sealed) == {"a": HIDDEN, "n": 5, "list": [HIDDEN, {"y": HIDDEN}], "empty": ""}
    assert unseal(sealed, CIPHER, HERE) == raw
    # Still hidden and still open once its package is there and calls some of it no secret.
    assert hide(Config, sealed)["a"] == HIDDEN


def test_a_secret_of_another_row_does_not_open():
    sealed = seal(Config, RAW, CIPHER, HERE)
    with pytest.raises(MisconfiguredError, match="moved there from elsewhere"):
        unseal(sealed, CIPHER, place("issuer", "iss-2", "config"))


@pytest.mark.parametrize(
    ("model", "old", "new", "expected"),
    [
        pytest.param(Config, {"url": "a", "x": 1}, {"x": 2}, {"url": "a", "x": 2}, id="first level"),
        pytest.param(Config, {"url": "a", "x": 1}, {"x": None}, {"url": "a"}, id="null removes"),
        pytest.param(Config, {"key": "s"}, {"key": HIDDEN}, {"key": "s"}, id="hidden keeps"),
        pytest.param(Config, {"api_key": "s"}, {"key": HIDDEN}, {"key": "s"}, id="hidden under another name"),
        pytest.param(Config, {}, {"key": HIDDEN, "url": "a"}, {"url": "a"}, id="nothing to keep"),
        pytest.param(Config, {"addr": "old"}, {"url": "new"}, {"url": "new"}, id="another name replaces"),
        pytest.param(Config, {"url": "old"}, {"addr": "new"}, {"addr": "new"}, id="the other way round"),
        pytest.param(
            Config,
            {"login": {"user": "a", "password": "s"}},
            {"login": {"user": "b", "password": HIDDEN}},
            {"login": {"user": "b", "password": "s"}},
            id="nested",
        ),
        pytest.param(
            Config, {"login": {"user": "a", "password": "s"}}, {"login": {"user": "b"}}, {"login": {"user": "b"}},
            id="nested is replaced whole",
        ),
        pytest.param(None, {"l": ["s", "t"]}, {"l": [HIDDEN, "u", HIDDEN]}, {"l": ["s", "u"]}, id="lists"),
    ],
)  # fmt: skip
def test_options_merge_at_their_first_level(model, old, new, expected):
    assert merged(model, old, new) == expected


def test_what_only_we_write_is_noticed_in_what_a_client_sends():
    stolen = seal(None, {"a": "s"}, CIPHER, HERE)["a"]
    assert sealed_keys({"url": stolen, "deep": {"list": [1, stolen]}, "plain": "sealed:1:x"}) == ["url", "deep"]


def test_options_that_name_files_are_found_wherever_they_lie():
    raw = {"url": "/not/a/file", "auth": {"mode": "mtls", "cert": "/etc/shadow"}, "strange": {"cert": "/x"}}
    assert list(files(Config, raw)) == [("auth.cert", "/etc/shadow")]
    assert list(files(None, raw)) == []
