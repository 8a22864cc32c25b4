from __future__ import annotations

import pytest
import yaml

from domain.errors import PermanentError
from domain.kubeconfig import rewrite_kubeconfig

PLANTED = "cGxhbnRlZC1wcml2YXRlLWtleQ=="
TEXT = f"""apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Y2E=
    server: https://127.0.0.1:6443
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
preferences: {{}}
users:
- name: default
  user:
    client-certificate-data: Y2VydA==
    client-key-data: {PLANTED}
"""


def test_the_servers_own_file_speaks_of_the_virtual_address_and_the_cluster() -> None:
    found = yaml.safe_load(rewrite_kubeconfig(TEXT, "10.90.0.50", "demo"))

    assert found["clusters"][0]["cluster"]["server"] == "https://10.90.0.50:6443"
    assert found["current-context"] == "demo"
    assert found["contexts"] == [{"context": {"cluster": "demo", "user": "demo"}, "name": "demo"}]
    assert found["users"][0]["name"] == found["clusters"][0]["name"] == "demo"
    assert found["users"][0]["user"]["client-key-data"] == PLANTED


def test_a_second_rewrite_changes_nothing() -> None:
    once = rewrite_kubeconfig(TEXT, "10.90.0.50", "demo")

    assert rewrite_kubeconfig(once, "10.90.0.50", "demo") == once


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names 0 API servers"),
        (TEXT + TEXT, "names 2 API servers"),
        (TEXT.replace("client-key-data", "client-key"), "has no client-key-data"),
    ],
)
def test_a_text_of_another_form_is_refused_without_repeating_it(text: str, words: str) -> None:
    with pytest.raises(PermanentError, match=words) as caught:
        rewrite_kubeconfig(text, "10.90.0.50", "demo")

    assert PLANTED not in str(caught.value)
