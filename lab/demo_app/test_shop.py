from shop import ANSWERS


def test_the_health_check_answers() -> None:
    assert ANSWERS["/healthz"] == "ok\n"
