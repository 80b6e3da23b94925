"""Credentials: what is refused in a spec, and what is blotted out of the messages of libraries."""

from __future__ import annotations

import pytest

from cluster.secrets import holds_a_secret, names_a_secret, redact


@pytest.mark.parametrize("name", ["token", "api_key", "hf-token", "aws_secret", "Password", "credentials"])
def test_a_field_of_such_a_name_would_hold_a_credential(name):
    assert names_a_secret(name)


@pytest.mark.parametrize("name", ["tokenizer", "keyboard", "secretary", "sites"])
def test_other_fields_do_not(name):
    assert not names_a_secret(name)


@pytest.mark.parametrize(
    ("before", "secret"),
    [
        ("https://", "me:hunter2"),
        ("key ", "AKIAABCDEFGHIJKLMNOP"),
        ("token of the hub ", "hf_" + "a" * 24),
        ("", "password: hunter2"),
        ("", "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----"),
        ("", "-----BEGIN PRIVATE KEY-----\nMIIEow"),
        ("/x?size=2&", "token=PLANTED99"),
        ("https://bucket.s3/images.tar?", "X-Amz-Signature=0123abcd"),
        ("https://storage/images.tar?", "X-Goog-Signature=0123abcd"),
        ("https://blob/images.tar?sv=2024&", "sig=Ab%2Fc"),
        ("Authorization: Bearer ", "eyJhbGciOi.J9"),
    ],
)
def test_what_looks_like_a_credential_is_refused_in_a_spec_and_blotted_out_of_a_message(before, secret):
    text = f"{before}{secret}@host" if "://" in before and "?" not in before else before + secret
    assert holds_a_secret(text)
    assert redact(f"said: {text}").startswith(f"said: {before}[removed]") and secret not in redact(text)


NAMES = (
    "password", "DB_PASSWD", "client_secret", "api_key", "AWS_SECRET_ACCESS_KEY", "aws_session_token", "private-key", "access_token",
)  # fmt: skip
WAYS = (
    "{name}=PLANT3D", "{name}: PLANT3D", "{name} = 'PLANT3D'", '{name}: "PLANT3D"', "{name}='PLANT 3D {{}}'", '{{"{name}": "PLANT3D"}}',
    '{{"{name}":"1\\"PLANT3D","user":"me"}}', '"{{\\"{name}\\": \\"PLANT3D\\"}}"', "{{'{name}': 'PLANT3D'}}", "os.environ['{name}'] = 'PLANT3D'",
    '{name} = """PLANT3D"""',
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_assigned_to_such_a_name_is_a_credential_however_it_is_quoted(name: str, way: str) -> None:
    text = way.format(name=name)
    assert holds_a_secret(text) and "PLANT" not in redact(text) and "3D" not in redact(text)


@pytest.mark.parametrize("secret", ["me:pass/word", ":PLANTED"])
def test_passwords_of_urls_may_have_a_slash_and_no_name_before_them(secret: str) -> None:
    text = f"redis://{secret}@host/x"
    assert holds_a_secret(text) and redact(text) == "redis://[removed]@host/x"


def test_what_follows_a_quoted_credential_is_kept() -> None:
    assert redact('{"password": "hun,ter)2", "user": "me"}') == '{"[removed], "user": "me"}'


@pytest.mark.parametrize(
    "text",
    [
        "password: ''",
        'api_key = "", user = "me"',
        "http://localhost:8080/images@2024",
        "the secret of the tokens is their mean",
        "concepts: [torch bearer, standard bearer portraits, the ring bearer standing.]",
        "https://host/photos?size=2&page=3",
        "tokenizer: bytes",
        "sae:0123abcd latents of tokens",
    ],
)
def test_ordinary_words_of_specs_are_not(text):
    assert not holds_a_secret(text) and redact(text) == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "403 for https://cdn.hub/x?X-Amz-Credential=AK%2F20&X-Amz-Signature=abc123&id=7",
            "403 for https://cdn.hub/x?[removed]&[removed]&id=7",
        ),
        ("GET /f?Expires=5&Signature=q~Z_&Key-Pair-Id=K1'", "GET /f?Expires=5&[removed]&[removed]'"),
        ("header Bearer abcdefgh.ijk", "header Bearer [removed]"),
        ("https://me:hunter2@host/x", "https://[removed]@host/x"),
        ("site resid_post.1@cls of open_clip:RN50/openai", "site resid_post.1@cls of open_clip:RN50/openai"),
    ],
)
def test_signatures_and_tokens_are_blotted_out_and_the_rest_is_kept(text, kept):
    assert redact(text) == kept
