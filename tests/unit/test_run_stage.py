"""The table of stages."""

from __future__ import annotations

import pytest

from nanochat.errors import ConfigError
from nanochat.run.config import RunConfig, StageConfig
from nanochat.run.stage import STAGE_NAMES, STAGES, stage, until


def test_stages_stand_in_the_order_of_the_contract():
    names = [s.name for s in STAGES]
    assert [name for name in STAGE_NAMES if name in names] == names
    assert set(STAGE_NAMES) - set(names) == {"chat_rl", "rl_eval"}


def test_every_stage_reads_only_what_comes_before_it():
    seen: set[str] = set()
    for s in STAGES:
        for read in s.reads:
            assert set(read.rstrip("?").split("|")) <= seen, f"{s.name} reads {read}"
        seen.add(s.name)


def test_every_setting_of_a_stage_is_a_field_of_the_run():
    for s in STAGES:
        assert set(s.settings) <= set(RunConfig.model_fields)


def test_evaluation_of_chat_models_is_one_module():
    assert stage("mid_eval").module == stage("chat_eval").module


def test_an_identity_file_counts_by_its_content(tmp_path):
    def hash_of(name, text):
        (tmp_path / name).write_text(text)
        spec = RunConfig(run="r", preset="smoke", source="generated", identity=tmp_path / name)
        return StageConfig(stage="data", spec=spec).hash

    assert hash_of("a", "I am Bob") == hash_of("b", "I am Bob")
    assert hash_of("a", "I am Bob") != hash_of("a", "I am Eve")


def test_until_cuts_after_the_named_stage():
    assert [s.name for s in until("tok_eval")] == ["data", "tok_train", "tok_eval"]
    assert until(None) == STAGES


def test_an_unknown_stage_offers_the_nearest():
    with pytest.raises(ConfigError) as caught:
        stage("base_trian")
    assert caught.value.hint == "did you mean `base_train`?"
