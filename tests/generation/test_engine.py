"""The engine against `transformers`, and against itself: alone = batched = cached, in any order."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from steersman.errors import ConfigError, DataError
from steersman.generation.engine import Engine
from steersman.models.adapters import LoraConfig, add_lora, merge_adapter
from steersman.models.load import LoadedModel
from steersman.records import Completion, Prompt
from steersman.seams import (
    ContinuationScorer,
    GenerationRequest,
    Generator,
    Guidance,
    Sampling,
    Scored,
    ScoreRequest,
)

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
GREEDY = Sampling(greedy=True, max_tokens=16)
POEM = "Please write a short poem about the moon, the sun and the stars; "
PROMPTS = (
    "What is the capital",
    "a",
    "Tell me a joke about the sea. Why did the sea wave? Because it saw",
    POEM * 5,
    POEM + "thank you",
    "What is the capital",
)
SETTINGS = (
    {},
    {"max_batch": 3, "prefill_tokens": 7},
    {"prefix_cache_tokens": 0},
    {"max_batch": 2, "prefix_cache_tokens": 120},  # less than all prompts: evicts
)

Load = Callable[..., LoadedModel]


def ask(prompt: str, sampling: Sampling = GREEDY, **fields: object) -> GenerationRequest:
    return GenerationRequest(prompt=Prompt(text=prompt), sampling=sampling, **fields)


def plain(loaded: LoadedModel) -> PreTrainedModel:
    """The same model with the attention of `transformers`."""
    model = copy.deepcopy(loaded.model)
    model.set_attn_implementation("eager")
    return model


def transformers_greedy(loaded: LoadedModel, prompt: str, **options: object) -> list[int]:
    ids = torch.tensor([loaded.encoder.encode(prompt).ids])
    output = plain(loaded).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=16,
        do_sample=False,
        pad_token_id=2,
        eos_token_id=list(loaded.encoder.eos_ids),
        **options,
    )
    return output[0, ids.shape[1] :].tolist()


@torch.no_grad()
def transformers_logprobs(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    """log P(. | ids[:t + 1]): f32[T, V]."""
    return plain(loaded)(torch.tensor([ids])).logits[0].log_softmax(-1)


def ending(loaded: LoadedModel, token: int) -> LoadedModel:
    """The same model, for which `token` ends an answer."""
    encoder = copy.copy(loaded.encoder)
    encoder.eos_ids = (token,)
    return replace(loaded, encoder=encoder)


# --- Greedy, against transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_in_any_batch_and_cache(load: Load, family: str):
    loaded = load(family)
    expected = [transformers_greedy(loaded, prompt) for prompt in PROMPTS]
    requests = [ask(prompt) for prompt in PROMPTS]
    for settings in SETTINGS:
        engine = Engine(loaded, **settings)
        assert isinstance(engine, Generator)
        for batch in (requests, requests[::-1]):  # the second time from the cache
            assert [c.token_ids for c in engine.generate(batch)] == (expected if batch is requests else expected[::-1])


def test_repetition_penalty_equals_transformers(load: Load):
    loaded = load("gemma3")
    penalised = replace(GREEDY, repetition_penalty=1.7)
    expected = [transformers_greedy(loaded, prompt, repetition_penalty=1.7) for prompt in PROMPTS]
    assert expected[0] != transformers_greedy(loaded, PROMPTS[0])
    completions = Engine(loaded).generate([ask(prompt, penalised) for prompt in PROMPTS])
    assert [completion.token_ids for completion in completions] == expected


def test_log_probs_are_those_of_the_untempered_model(load: Load):
    loaded = load()
    sampling = Sampling(temperature=3.0, top_k=20, repetition_penalty=1.3, seed=4, max_tokens=12, logprobs=True)
    without = Sampling(greedy=True, min_tokens=12, max_tokens=12)
    _, completion = Engine(loaded).generate([ask("Where", without), ask("Tell me", sampling)])
    prompt_ids = loaded.encoder.encode("Tell me").ids
    logprobs_TV = transformers_logprobs(loaded, prompt_ids + completion.token_ids)
    expected = [float(logprobs_TV[len(prompt_ids) - 1 + i, token]) for i, token in enumerate(completion.token_ids)]
    assert completion.logprobs == pytest.approx(expected, abs=1e-4)
    assert completion.num_prompt_tokens == len(prompt_ids)


def test_an_adapter_is_part_of_the_model(load: Load):
    loaded = load()
    base = [completion.token_ids for completion in Engine(loaded).generate([ask(prompt) for prompt in PROMPTS])]
    new_token = loaded.encoder.tokenizer.convert_tokens_to_ids("<extra_id_2>")
    adapted = add_lora(loaded.model, LoraConfig(rank=4), [new_token])
    with torch.no_grad():
        for index, (name, parameter) in enumerate(adapted.named_parameters()):
            if "lora_B" in name or "trainable_tokens" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(index))
    got = Engine(replace(loaded, model=adapted)).generate([ask(prompt) for prompt in PROMPTS])
    merged = replace(loaded, model=merge_adapter(copy.deepcopy(adapted)))
    assert [completion.token_ids for completion in got] == [transformers_greedy(merged, prompt) for prompt in PROMPTS]
    assert [completion.token_ids for completion in got] != base


# --- An answer depends on its request alone


def test_any_company_order_and_cache_gives_the_same_answers(load: Load):
    loaded = load("gemma3")
    choose = random.Random(0)
    words = ["What", "is", "the capital", "of France", "Tell me", "a", "joke", "about", "the sea", "poem", "moon"]
    rules = [
        Sampling(seed=1, max_tokens=9),
        Sampling(seed=2, max_tokens=30, top_p=0.8),
        Sampling(seed=3, max_tokens=17, top_k=7, temperature=2.0, logprobs=True),
        Sampling(greedy=True, max_tokens=40, stop=("e", "qu")),
        Sampling(seed=5, max_tokens=25, repetition_penalty=1.2, min_tokens=5),
    ]
    requests = []
    for i in range(15):
        prompt = " ".join(choose.choices(words, k=choose.choice([1, 5, 60])))
        guidance = Guidance(against=Prompt(text=prompt + " no"), scale=2.0) if i % 6 == 0 else None
        requests.append(ask(POEM + prompt if i % 3 else prompt, rules[i % 5], guidance=guidance))
    alone = [Engine(loaded, prefix_cache_tokens=0).generate([request])[0] for request in requests]

    def same(completions: list[Completion], order: list[int]) -> None:
        for completion, i in zip(completions, order, strict=True):
            assert completion.model_copy(update={"num_cached_tokens": 0, "logprobs": None}) == alone[i].model_copy(
                update={"logprobs": None}
            )
            assert completion.logprobs == pytest.approx(alone[i].logprobs, abs=1e-4)

    for settings, repetitions in (({}, 2), ({"max_batch": 4, "prefill_tokens": 16, "prefix_cache_tokens": 200}, 1)):
        engine = Engine(loaded, **settings)
        for _ in range(repetitions):
            order = list(range(len(requests)))
            choose.shuffle(order)
            same(engine.generate([requests[i] for i in order]), order)


def test_requests_without_a_seed_differ(load: Load):
    completions = Engine(load()).generate([ask("Tell me", Sampling(max_tokens=20))] * 2)
    assert completions[0].token_ids != completions[1].token_ids


# --- Prefixes


def test_a_common_prefix_of_requests_that_arrive_together_is_computed_once(load: Load):
    loaded = load()
    engine = Engine(loaded)
    prefix = POEM * 4
    completions = engine.generate([ask(prefix + word) for word in ("one", "two", "three", "four", "five")])
    prefix_length = len(loaded.encoder.encode(prefix).ids)
    assert completions[0].num_cached_tokens == 0
    assert all(c.num_cached_tokens >= prefix_length - 1 for c in completions[1:])


def test_a_second_turn_reuses_the_first_with_its_answer(load: Load):
    loaded = load()
    for seed in range(100):
        engine = Engine(loaded)
        first = engine.generate([ask(POEM, Sampling(seed=seed, max_tokens=8))])[0]
        ids = loaded.encoder.encode(POEM).ids + first.token_ids
        text = loaded.encoder.decode(ids) + " What"
        if loaded.encoder.encode(text).ids[: len(ids)] == ids:  # random bytes seldom survive decoding
            second = engine.generate([ask(text)])[0]
            assert second.num_cached_tokens == len(ids) - 1  # the last token was drawn, but never computed
            return
    pytest.fail("no answer survived decoding")


# --- Endings


def test_a_stop_string_ends_the_answer_wherever_tokens_end(load: Load):
    loaded = load()
    free = Engine(loaded).generate([ask("Tell me")])[0]
    stop = free.text[3:6]
    assert free.text.index(stop) == 3
    stopped = Engine(loaded).generate([ask("Tell me", replace(GREEDY, stop=("never", stop)))])[0]
    assert (stopped.text, stopped.stop, stopped.finish_reason) == (free.text[:3], stop, "stop")
    count = len(stopped.token_ids)
    assert stopped.token_ids == free.token_ids[:count]
    assert stop in loaded.encoder.decode(stopped.token_ids)
    assert stop not in loaded.encoder.decode(stopped.token_ids[:-1])


def test_an_end_token_ends_the_answer_but_not_before_min_tokens(load: Load):
    loaded = load()
    free = Engine(loaded).generate([ask("Tell me")])[0]
    end = next(token for token in free.token_ids[3:] if "\ufffd" not in loaded.encoder.decode([token]))
    position = free.token_ids.index(end)
    engine = Engine(ending(loaded, end))
    ended = engine.generate([ask("Tell me")])[0]
    assert (ended.token_ids, ended.finish_reason, ended.stop) == (free.token_ids[: position + 1], "stop", None)
    assert loaded.encoder.decode([end]) not in ended.text[-3:]
    later = engine.generate([ask("Tell me", replace(GREEDY, min_tokens=10))])[0]
    assert later.token_ids[:position] == free.token_ids[:position]
    assert end not in later.token_ids[:10]
    named = engine.generate([ask("Tell me", replace(GREEDY, stop=(loaded.encoder.decode([end]),)))])[0]
    assert (named.text, named.stop) == (ended.text, loaded.encoder.decode([end]))


def test_the_templates_turn_start_ends_the_answer_as_token_and_as_stop_string(load: Load):
    loaded = load()
    free = Engine(loaded).generate([ask("Tell")])[0]
    turn_start = loaded.encoder.tokenizer.convert_tokens_to_ids("<extra_id_1>")
    weight = loaded.model.get_output_embeddings().weight
    with torch.no_grad():
        weight[turn_start] = 1.01 * weight[free.token_ids[2]]  # likelier than the third token, wherever that is drawn
    for stop in ((), ("<extra_id_1>",)):
        completion = Engine(loaded).generate([ask("Tell", replace(GREEDY, stop=stop))])[0]
        assert completion.token_ids == [*free.token_ids[:2], turn_start]
        assert (completion.finish_reason, completion.stop) == ("stop", stop[0] if stop else None)
        assert "<extra_id_1>" not in completion.text


def test_budget_and_window_bound_the_answer(load: Load):
    loaded = load()
    engine = Engine(loaded)
    short = engine.generate([ask("Tell me", replace(GREEDY, max_tokens=3))])[0]
    assert (len(short.token_ids), short.finish_reason) == (3, "length")
    prompt = "a" * (loaded.window - 6)
    room = loaded.window - len(loaded.encoder.encode(prompt).ids)
    assert 0 < room < 16
    assert len(engine.generate([ask(prompt)])[0].token_ids) == room


# --- Refusals


def test_prompts_that_cannot_be_continued_are_refused(load: Load):
    engine = Engine(load(bos=False))
    with pytest.raises(DataError, match="leaves no room to answer"):
        engine.generate([ask("fine"), ask("a b c d e f g " * 200)])
    with pytest.raises(DataError, match="empty"):
        engine.generate([ask("")])
    with pytest.raises(DataError, match="window"):
        engine.score([ScoreRequest(prompt=Prompt(text="a"), continuation="a b c d e f g " * 200)])
    with pytest.raises(DataError, match="nothing comes before"):
        engine.score([ScoreRequest(prompt=Prompt(text=""), continuation="a")])
    with pytest.raises(ConfigError, match="max_batch"):
        Engine(load(), max_batch=0)
    guided = ask("Tell", guidance=Guidance(against=Prompt(text="Do"), scale=2.0))
    with pytest.raises(ConfigError, match="two sequences"):
        Engine(load(), max_batch=1).generate([guided])
    assert len(engine.generate([ask("fine")])) == 1  # nothing is left over


# --- Streaming and serving


def test_a_stream_is_the_completion_in_pieces(load: Load):
    loaded = load()
    for seed in range(6):
        request = ask("Tell me", Sampling(seed=seed, max_tokens=40, stop=("th", "qa")))
        pieces = list(Engine(loaded).stream(request))
        completion = Engine(loaded).generate([request])[0]
        assert "".join(pieces) == completion.text
        assert len(pieces) > 1 or len(completion.text) < 3
        assert all(pieces)


def test_closing_a_stream_frees_its_place(load: Load):
    engine = Engine(load())
    stream = engine.stream(ask("Tell me"))
    next(stream)
    stream.close()
    assert (engine.num_running, engine.num_waiting) == (0, 0)


def test_requests_join_and_leave_a_running_batch(load: Load):
    loaded = load()
    requests = [ask(prompt) for prompt in PROMPTS]
    expected = [completion.token_ids for completion in Engine(loaded).generate(requests)]
    engine = Engine(loaded, max_batch=3)
    handles: dict[int, int] = {}
    results: dict[int, Completion | Scored] = {}
    cancelled = None
    for step in range(300):
        if step % 2 == 0 and len(handles) < len(requests):
            handles[engine.submit(requests[len(handles)])] = len(handles)
        if step == 8:
            cancelled = list(handles)[2]
            engine.cancel(cancelled)
            engine.cancel(cancelled)  # twice is harmless
        if step == 10:
            scoring = engine.submit(ScoreRequest(prompt=Prompt(text="Tell"), continuation=" me a joke"))
        for event in engine.step():
            if event.result is not None:
                results[event.handle] = event.result
        assert engine.num_running <= 3
    assert set(results) == {*handles, scoring} - {cancelled}
    for handle, index in handles.items():
        if handle != cancelled:
            assert results[handle].token_ids == expected[index]
    assert isinstance(results[scoring], Scored)
    assert (engine.num_running, engine.num_waiting) == (0, 0)


# --- Guidance


def test_guidance_follows_its_equation(load: Load):
    loaded = load()
    wanted, against, scale = "Tell me a joke", "Tell me a very long poem about", 1.8
    sequences = [loaded.encoder.encode(text).ids for text in (wanted, against)]
    model, expected = plain(loaded), []
    for _ in range(12):
        with torch.no_grad():
            x_wanted, x_against = (model(torch.tensor([ids + expected])).logits[0, -1] for ids in sequences)
        expected.append(int((x_against + scale * (x_wanted - x_against)).argmax()))
    guidance = Guidance(against=Prompt(text=against), scale=scale)
    short = replace(GREEDY, max_tokens=12)
    unguided = ask(wanted, short)
    completions = Engine(loaded).generate([unguided, ask(wanted, short, guidance=guidance)])
    assert completions[1].token_ids == expected
    assert completions[0].token_ids != expected


def test_guidance_of_scale_one_is_none(load: Load):
    sampling = Sampling(seed=3, max_tokens=15, repetition_penalty=1.4, top_p=0.9)
    engine = Engine(load())
    guided = ask("Tell me", sampling, guidance=Guidance(against=Prompt(text="Do not tell me"), scale=1.0))
    assert engine.generate([guided])[0].token_ids == engine.generate([ask("Tell me", sampling)])[0].token_ids


# --- Scoring


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{}, {"prefill_tokens": 5, "max_batch": 2}])
def test_continuations_are_scored_as_transformers_does(load: Load, family: str, settings: dict[str, int]):
    loaded = load(family)
    pairs = [(POEM, " thank you"), (POEM, " thank you very much"), ("What is", " the capital of France?"), ("a", "")]
    engine = Engine(loaded, **settings)
    assert isinstance(engine, ContinuationScorer)
    requests = [ScoreRequest(prompt=Prompt(text=prompt), continuation=text) for prompt, text in pairs]
    for (prompt, text), scored in zip(pairs, engine.score(requests), strict=True):
        ids = loaded.encoder.encode(prompt + text).ids
        first = len(ids) - len(scored.token_ids)
        assert scored.token_ids == ids[first:]
        logprobs_TV = transformers_logprobs(loaded, ids)
        expected = [float(logprobs_TV[t - 1, ids[t]]) for t in range(first, len(ids))]
        assert scored.logprobs == pytest.approx(expected, abs=1e-4)


def test_alternatives_of_one_token_are_read_off_one_position(load: Load):
    loaded = load()
    prompt, label = "<extra_id_1>Assistant\nParis.\n<extra_id_2>", "quality:4,toxicity:0\n"
    digits = [str(value) for value in range(5)]
    spans = {(8, 9): digits, (19, 20): digits}
    request = ScoreRequest(prompt=Prompt(text=prompt), continuation=label, alternatives=spans)
    scored = Engine(loaded).score([request])[0]
    for start, end in spans:
        before = loaded.encoder.encode(prompt + label[:start]).ids
        logprobs_V = transformers_logprobs(loaded, before)[-1]
        expected = [float(logprobs_V[loaded.encoder.tokenizer.convert_tokens_to_ids(digit)]) for digit in digits]
        assert scored.alternatives[start, end] == pytest.approx(expected, abs=1e-4)


def test_comparing_candidates_gives_the_same_differences(load: Load):
    prompt, label = Prompt(text="<extra_id_1>Assistant\nParis.\n<extra_id_2>"), "quality:4,toxicity:0\n"
    digits = [str(value) for value in range(5)]
    whole = ScoreRequest(prompt=prompt, continuation=label, alternatives={(8, 9): digits, (19, 20): digits})
    engine = Engine(load())
    exact, compared = engine.score([whole])[0], engine.score([replace(whole, compare_only=True)])[0]
    assert compared.logprobs == []
    for span, logprobs in exact.alternatives.items():
        offset = compared.alternatives[span][0] - logprobs[0]
        assert compared.alternatives[span] == pytest.approx([logprob + offset for logprob in logprobs], abs=1e-4)


def test_comparing_candidates_of_several_tokens_normalises_each(load: Load):
    asked = ScoreRequest(prompt=Prompt(text="The moon"), continuation=" is 9", alternatives={(4, 5): ["9", "a lake"]})
    engine = Engine(load())
    exact, compared = engine.score([asked])[0], engine.score([replace(asked, compare_only=True)])[0]
    assert compared.alternatives[4, 5] == pytest.approx(exact.alternatives[4, 5], abs=1e-4)


def test_alternatives_of_several_tokens_sum_their_own(load: Load):
    loaded = load()
    prompt, text = "The moon", " is 9, the sea"
    candidates = ["9", "10", "1", "a lake"]
    request = ScoreRequest(prompt=Prompt(text=prompt), continuation=text, alternatives={(4, 5): candidates})
    scored = Engine(loaded, max_batch=2).score([request])[0]
    for candidate, logprob in zip(candidates, scored.alternatives[4, 5], strict=True):
        # "1" begins "10": all are compared up to the comma that follows
        before = loaded.encoder.encode(prompt + " is").ids
        ids = loaded.encoder.encode(prompt + " is " + candidate + ",").ids
        assert ids[: len(before)] == before
        logprobs_TV = transformers_logprobs(loaded, ids)
        expected = sum(float(logprobs_TV[t - 1, ids[t]]) for t in range(len(before), len(ids)))
        assert logprob == pytest.approx(expected, abs=1e-4)


def test_scoring_chunks_its_logits(load: Load, monkeypatch: pytest.MonkeyPatch):
    request = ScoreRequest(prompt=Prompt(text=POEM), continuation=POEM)
    whole = Engine(load()).score([request])[0]
    monkeypatch.setattr("steersman.generation.engine.LOGITS_AT_ONCE", 1)
    assert Engine(load()).score([request])[0].logprobs == pytest.approx(whole.logprobs, abs=1e-5)
