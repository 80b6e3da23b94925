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
    "text",
    [
        "https://me:hunter2@host/x",
        "AKIAABCDEFGHIJKLMNOP",
        "hf_" + "a" * 24,
        "password: x",
        "-----BEGIN RSA PRIVATE KEY",
    ],
)
def test_a_text_that_looks_like_a_credential_is_known(text):
    assert holds_a_secret(text)


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
