"""Failed saves: reported, taken again, and the end of a run after too many."""

import pytest

from nano3.training.run.failed_saves import FailedSaves, SaveError

ERROR = SaveError("Cannot write checkpoint a: no space. Free disk space.")


def test_a_failed_save_is_reported_until_too_many_fail_in_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    saves = FailedSaves(3)
    saves.add(ERROR, final=False)
    saves.add(ERROR, final=False)
    saves.reset()
    saves.add(ERROR, final=False)
    saves.add(ERROR, final=False)
    message = " ".join(capsys.readouterr().err.split())
    assert message.count("SAVE FAILED") == 4 and "(2 of 3 in a row end the run): Cannot write checkpoint a" in message
    with pytest.raises(SaveError, match=r"3 saves in a row have failed \(checkpoint.max_failed_saves\)") as caught:
        saves.add(ERROR, final=False)
    assert caught.value.exit_code == 1


def test_the_last_save_must_succeed() -> None:
    with pytest.raises(SaveError, match=r"no space\. Free disk space\. Then run the same command again"):
        FailedSaves(3).add(ERROR, final=True)
