"""The example on recorded speech: its data, what it compares, and a tiny run with its pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import sound
import torch
from conftest import missing, require_or_skip
from training import one_thread  # noqa: F401

from msr_cuda.train import DataError


@pytest.fixture(scope="module")
def utterances() -> list[sound.Utterance]:
    """Those for training."""
    try:
        return sound.read("TRAIN")
    except DataError as error:
        missing(str(error))
        raise


def test_utterances_are_those_of_the_paper(utterances: list[sound.Utterance]) -> None:
    assert [u.speaker for u in utterances] == [speaker for speaker in range(9) for _ in range(30)]
    lengths = {u.frames.shape[1] for u in utterances}
    assert min(lengths) >= 7 and max(lengths) <= 29
    first = utterances[0].frames
    assert first.shape == (12, 20) and float(first[0, 0]) == pytest.approx(1.860936)
    same = sound.standardized(utterances, utterances)
    frames = torch.cat([u.frames for u in same], 1)
    torch.testing.assert_close(frames.mean(1), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames.std(1), torch.ones(12))


def test_a_tempo_stretches_what_is_said() -> None:
    ramp = torch.arange(10.0).expand(12, -1)
    frames, speakers = sound.batch([sound.Utterance(ramp, 3), sound.Utterance(ramp[:, :7], 1)], 2.0)
    assert frames.shape == (2, 12, 64) and speakers.tolist() == [3, 1]
    torch.testing.assert_close(frames[0, 0, 1:19], torch.arange(0.25, 9, 0.5))
    assert frames[0, :, 20:].eq(0).all() and frames[1, :, 14:].eq(0).all()
    assert frames[1, :, 13].gt(0).all()
    short, _ = sound.batch([sound.Utterance(ramp, 3)])
    assert torch.equal(short[0, :, :10], ramp) and short.shape == (1, 12, 32)


def test_plain_networks_cost_as_much() -> None:
    decides, fuses, same, wider = (make() for make in sound.contenders(8).values())
    count = [sum(p.numel() for p in network.parameters()) for network in (decides, fuses, same)]
    assert count[0] == count[2] == count[1] - len(sound.SCALES)
    # Each scale's features go through the linear layer, which has 8 * 8 inputs.
    assert sound.cost(decides) == sound.cost(fuses) + 2 * 64 * 9
    assert sound.cost(fuses) > 2 * sound.cost(same)
    assert abs(sound.cost(wider) / sound.cost(decides) - 1) < 0.1


@pytest.mark.usefixtures("utterances")
def test_a_run_writes_a_table_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_or_skip("matplotlib")
    out = tmp_path / "out"
    assert sound.main(["--seeds=2", "--steps=2", "--width=4", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    text = (out / sound.TABLE).read_text(encoding="utf-8")
    assert text in printed and text.count("\n| 3 scales") == text.count("\n| plain") == 2
    assert text.count(" ± ") == 4 * 5
    for name in (sound.ACCURACY, sound.CONFUSION):
        content = (out / name).read_bytes()
        assert content.startswith(b"\x89PNG") and 1000 < len(content) < 200_000


def test_mistakes_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        sound.main(["--steps", "0"])
    assert "--steps: expected 1 or more, got 0" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert sound.main(["--out", str(tmp_path)]) == 1
    said = "sound.py: the speech data: aeon is not installed; pip install --no-deps aeon"
    assert said in capsys.readouterr().err
