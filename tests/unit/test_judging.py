import pytest

from axiskit.errors import JudgeError
from axiskit.judging import _check_unscored, is_plain_refusal, likelihood_score


@pytest.mark.parametrize(
    ("ratio", "score"), [(-0.1, 1), (-1e-9, 1), (0.0, 2), (0.049, 2), (0.05, 3), (1.0, 3)]
)
def test_thresholds_give_1_2_3(ratio, score):
    assert likelihood_score("Arr.", ratio, [0.0, 0.05]) == score


def test_a_plain_refusal_scores_0_whatever_the_ratio():
    assert likelihood_score("I cannot help with that.", 5.0, [0.0, 0.05]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m sorry, I cannot pretend to be a ghost.",
        "Sorry, I can't do that.",
        "As an AI language model, I do not have feelings.",
        "I am just an AI and have no day.",
        "Unfortunately, I cannot answer this.",
        "I am not able to play that role.",
    ],
)
def test_plain_refusals(text):
    assert is_plain_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I can't wait to tell ye of the sea.",
        "I am sorry for your loss, traveller.",
        "Sorry is a word the wind forgets.",
        "I will not lie: the ledger is short.",
        "As an accountant, I would first count the receipts.",
        "I cannot see the sun, and so I wait.",
        "",
    ],
)
def test_answers_that_only_sound_like_refusals(text):
    assert not is_plain_refusal(text)


def test_too_many_unscored_responses_of_a_role_fail_with_their_reasons():
    rows = [{"role": "ghost", "score": 3}] * 8 + [{"role": "ghost", "reason": "empty response"}] * 2
    _check_unscored(rows, 0.2)
    with pytest.raises(JudgeError, match=r"'ghost': 2 of 10 .*2 empty response.*max_unscored"):
        _check_unscored(rows, 0.1)
