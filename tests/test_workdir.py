"""A workdir belongs to one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from configs import tiny_cpu
from medvr_jax import configuration
from medvr_jax.errors import UserError
from medvr_jax.workdir import prepare_workdir, saved_config


@pytest.fixture
def tiny(tmp_path: Path) -> ConfigDict:
    config = tiny_cpu.get_config()
    config.model.path = str(tmp_path / "model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return config


def start_run(workdir: Path, config: FrozenConfigDict) -> None:
    """A run that got as far as its first line of metrics."""
    prepare_workdir(workdir, config, "train")
    (workdir / "metrics.jsonl").write_text("{}\n")


def test_workdir_remembers_its_configuration(tiny: ConfigDict, tmp_path: Path) -> None:
    workdir = tmp_path / "runs" / "first"
    tiny.optimizer.schedule = "constant"
    config = configuration.validate(tiny)
    start_run(workdir, config)
    assert saved_config(workdir) == config
    prepare_workdir(workdir, config, "train")

    tiny.steps += 10
    longer = configuration.validate(tiny)
    prepare_workdir(workdir, longer, "train")
    assert json.loads((workdir / "config.json").read_text())["steps"] == longer.steps
    with pytest.raises(UserError, match="steps was 70, now 60; it may only grow"):
        prepare_workdir(workdir, config, "train")

    tiny.optimizer.learning_rate = 2e-3
    with pytest.raises(UserError, match="optimizer.learning_rate was 0.0005, now 0.002"):
        prepare_workdir(workdir, configuration.validate(tiny), "train")


def test_steps_of_a_cosine_schedule_cannot_grow(tiny: ConfigDict, tmp_path: Path) -> None:
    tiny.optimizer.schedule = "cosine"
    start_run(tmp_path / "run", configuration.validate(tiny))
    tiny.steps += 1
    message = "steps was 60, now 61; the shape of optimizer.schedule = 'cosine' depends on it; give another --workdir"
    with pytest.raises(UserError, match=message):
        prepare_workdir(tmp_path / "run", configuration.validate(tiny), "train")


def test_a_run_goes_on_with_other_sinks(tiny: ConfigDict, tmp_path: Path) -> None:
    start_run(tmp_path / "run", configuration.validate(tiny))
    tiny.report.tensorboard, tiny.report.wandb, tiny.report.wandb_name = True, "offline", "again"
    prepare_workdir(tmp_path / "run", configuration.validate(tiny), "train")
    tiny.report.wandb = "on"
    with pytest.raises(UserError, match="report.wandb: found 'on', allowed are off, online, offline"):
        configuration.validate(tiny)


def test_other_modes_may_change_what_does_not_shape_a_checkpoint(tiny: ConfigDict, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match="holds no config.json"):
        prepare_workdir(workdir, configuration.validate(tiny), "export")
    prepare_workdir(workdir, configuration.validate(tiny), "train")
    saved = (workdir / "config.json").read_text()
    other = saved_config(workdir, [("data.test_examples", "64"), ("mesh.host_devices", "1")])
    prepare_workdir(workdir, other, "evaluate")
    prepare_workdir(workdir, other, "export")
    assert (workdir / "config.json").read_text() == saved
    other = saved_config(workdir, [("model.freeze_vision_tower", "false")])
    with pytest.raises(UserError, match="model.freeze_vision_tower was True, now False"):
        prepare_workdir(workdir, other, "export")


def test_an_evaluation_of_a_checkpoint_is_one_of_the_same_model(tiny: ConfigDict, tmp_path: Path) -> None:
    """Where there is none, the model folder itself is evaluated, whichever it is."""
    workdir = tmp_path / "run"
    prepare_workdir(workdir, configuration.validate(tiny), "evaluate")
    saved = (workdir / "config.json").read_text()
    other = saved_config(workdir, [("model.compute_dtype", "bfloat16")])
    prepare_workdir(workdir, other, "evaluate")
    assert (workdir / "config.json").read_text() == saved
    (workdir / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match="model.compute_dtype was 'float32', now 'bfloat16'"):
        prepare_workdir(workdir, other, "evaluate")
    elsewhere = [("model.compute_dtype", "bfloat16"), ("evaluate.endpoint", "http://host/v1"), ("evaluate.model", "m")]
    prepare_workdir(workdir, saved_config(workdir, elsewhere), "evaluate")


def test_a_run_that_is_older_than_a_field_goes_on_with_its_default(
    tiny: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    config = configuration.validate(tiny)
    start_run(workdir, config)
    saved = json.loads((workdir / "config.json").read_text())
    del saved["evaluate"], saved["data"]["filter_rule"], saved["optimizer"]["schedule"]
    old = json.dumps(saved)
    told = "config.json is older than "
    (workdir / "config.json").write_text(old)
    changed = saved_config(workdir, [("evaluate.samples", "2"), ("evaluate.temperature", "1.0")])
    assert (changed.evaluate.samples, changed.data.filter_rule) == (2, "strict")
    said = capsys.readouterr().out
    assert said.count("\n") == said.count(told) == 1 and "data.filter_rule" in said and "evaluate.sets" in said
    # The recipe says cosine; what the run was trained with is taken as the default, which is another one.
    with pytest.raises(UserError, match="optimizer.schedule was 'constant', now 'cosine'"):
        prepare_workdir(workdir, config, "train")
    saved["optimizer"]["schedule"] = "cosine"
    (workdir / "config.json").write_text(json.dumps(saved))
    prepare_workdir(workdir, config, "train")
    assert told in capsys.readouterr().out
    assert saved_config(workdir) == config  # it is written down now
    prepare_workdir(workdir, config, "train")
    assert told not in capsys.readouterr().out
    saved["data"] = 3
    (workdir / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="data: is a section, not a field"):
        saved_config(workdir)


def test_a_search_for_leaks_takes_any_folder(tiny: ConfigDict, tmp_path: Path) -> None:
    config = configuration.validate(tiny)
    prepare_workdir(tmp_path / "new", config, "leaks")
    assert saved_config(tmp_path / "new") == config
    start_run(tmp_path / "run", config)
    tiny.seed += 1
    prepare_workdir(tmp_path / "run", configuration.validate(tiny), "leaks")
    assert saved_config(tmp_path / "run") == config


def test_workdirs_that_cannot_be_used(tiny: ConfigDict, tmp_path: Path) -> None:
    config = configuration.validate(tiny)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        prepare_workdir(tmp_path / "file" / "run", config, "train")
    (tmp_path / "old" / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no config.json"):
        prepare_workdir(tmp_path / "old", config, "train")
    start_run(tmp_path / "broken", config)
    (tmp_path / "broken" / "config.json").write_text('{"steps": ')
    with pytest.raises(UserError, match="cannot be read"):
        prepare_workdir(tmp_path / "broken", config, "train")


def test_a_run_that_failed_at_the_door_leaves_the_folder_free(tiny: ConfigDict, tmp_path: Path) -> None:
    prepare_workdir(tmp_path / "run", configuration.validate(tiny), "train")
    (tmp_path / "run" / "checkpoints").mkdir()
    tiny.seed = 5
    prepare_workdir(tmp_path / "run", configuration.validate(tiny), "train")
    assert saved_config(tmp_path / "run").seed == 5
