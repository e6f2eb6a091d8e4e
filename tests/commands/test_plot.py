"""The command plot."""

import json

import numpy as np
import pytest
from PIL import Image

from resnest_det.commands.plot import main
from resnest_det.errors import UserError


def write_run(folder, iterations=30):
    folder.mkdir(parents=True)
    lines = [{"iteration": i, "total_loss": 2 - i / iterations, "lr": 0.01} for i in range(iterations)]
    lines.append({"iteration": iterations, "bbox/AP": 30.0})
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.extras
def test_runs_are_drawn_in_one_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run", 50)
    main([str(tmp_path / "a" / "run")])
    one = np.asarray(Image.open(tmp_path / "a" / "run" / "curves.png"))
    main([str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run"), "--output", str(tmp_path / "both.png")])
    both = np.asarray(Image.open(tmp_path / "both.png"))
    assert one.shape == both.shape and (one != both).any()
    assert "2 runs: " in capsys.readouterr().out


def test_wrong_paths_are_named(tmp_path):
    write_run(tmp_path / "run")
    with pytest.raises(UserError, match="nowhere is not a folder"):
        main([str(tmp_path / "run"), str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="--output .*curves.txt must end in .png"):
        main([str(tmp_path / "run"), "--output", str(tmp_path / "curves.txt")])
