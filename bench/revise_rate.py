"""`revise` with the paper's few-shot prefix against `transformers.generate` doing the same, prompt by prompt.

    python bench/revise_rate.py [MODEL] [--prompts 64] [--rounds 2] [--tokens 48]

Both sides are a ChatModel of the same Reviser: the same prompts (first turns of HH), principles, transcripts and greedy
decoding, and every reply has the same number of tokens. Theirs is given each step's chats in padded batches of similar
length. What differs is what is computed: the prefix and the turns before, once or every time.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from result import write

from steersman import jsonl
from steersman.cai.constitution import Constitution
from steersman.cai.few_shot import load_few_shot
from steersman.cai.prompts import ChatPrompt, read_prompts
from steersman.cai.revise import ReviseConfig, Revised, Reviser
from steersman.generation.chat import ChatModel, ChatRequest, TemplatedChat
from steersman.generation.engine import Engine
from steersman.models.load import load_model
from steersman.records import Completion
from steersman.seams import Failure, GenerationRequest, Progress
from steersman.sources.chat_text import ChatText

NEXT_TURN = "\n\nHuman:"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TRANSCRIPT = ChatText(
    system_format="", user_format=f"{NEXT_TURN} {{MESSAGE}}\n\nAssistant:", assistant_format=" {MESSAGE}", eos_token=""
)


class Transformers:
    """A Generator on `transformers.generate`: padded batches of similar length, greedy, a fixed number of tokens."""

    def __init__(self, model: str, dtype: torch.dtype, batch: int) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(model, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.batch = batch

    def generate(self, requests: Sequence[GenerationRequest], progress: Progress | None = None) -> list[Completion]:
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt.text))
        found: dict[int, Completion] = {}
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            inputs = self.tokenizer([requests[row].prompt.text for row in rows], return_tensors="pt", padding=True)
            num_new = requests[0].sampling.max_tokens
            with torch.inference_mode():
                ids = self.model.generate(**inputs, do_sample=False, min_new_tokens=num_new, max_new_tokens=num_new)
            texts = self.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                found[row] = Completion(text=text, token_ids=[], finish_reason="length")
        return [found[index] for index in range(len(requests))]


class Tame:
    """A ChatModel whose replies end where the next turn begins and are never empty, so that every prompt goes through
    every step."""

    def __init__(self, chat: ChatModel) -> None:
        self.chat = chat

    def reply(self, requests: Sequence[ChatRequest], progress: Progress | None = None) -> list[Completion]:
        replies = self.chat.reply(requests)
        texts = (reply.text.partition(NEXT_TURN)[0].strip() for reply in replies)
        return [reply.model_copy(update={"text": text or "."}) for reply, text in zip(replies, texts, strict=True)]

    def try_reply(
        self, requests: Sequence[ChatRequest], progress: Progress | None = None
    ) -> list[Completion | Failure]:
        return [*self.reply(requests, progress)]


def seconds(reviser: Reviser, prompts: Sequence[ChatPrompt]) -> tuple[float, list[Revised]]:
    start = time.perf_counter()
    records = reviser.revise(prompts, job="bench")
    return time.perf_counter() - start, records


def shares(ours: Sequence[Revised], theirs: Sequence[Revised]) -> float:
    """Share of prompts with the same first answer; bf16 may break near-ties differently."""
    return sum(a.answer == b.answer for a, b in zip(ours, theirs, strict=True)) / len(ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="models/gemma-3-270m", help="model folder or id (%(default)s)")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48, help="of every reply")
    parser.add_argument("--batch", type=int, default=32, help="of either side")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--few-shot-samples", type=int, default=None)
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    asked = parser.parse_args()

    loaded = load_model(asked.model, precision=asked.precision)
    engine = Engine(loaded, max_batch=asked.batch)
    theirs = Transformers(asked.model, loaded.model.dtype, asked.batch)
    with tempfile.TemporaryDirectory() as folder:
        hh = Path(folder, "hh.jsonl")
        jsonl.write(hh, (row for _, row in jsonl.parse_each(DATA / "hh_harmless_base.jsonl.gz", dict)))
        prompts = read_prompts(hh).distinct[: asked.prompts]
    examples = load_few_shot(DATA / "CritiqueRevisionFewShotPrompts.json", asked.few_shot_samples)
    principles = Constitution.load(DATA / "CritiqueRevisionInstructions.json").critiques
    config = ReviseConfig(
        rounds=asked.rounds, max_tokens=asked.tokens, min_tokens=asked.tokens, greedy=True, unit=asked.prompts
    )

    def reviser(generator: Engine | Transformers) -> Reviser:
        chat = Tame(TemplatedChat(generator, loaded.encoder.template, "", formats=TRANSCRIPT))
        return Reviser(chat=chat, principles=principles, config=config, examples=examples, forget=engine.forget)

    ours_rates, their_rates, same = [], [], []
    for run in range(asked.runs):
        our_seconds, our_records = seconds(reviser(engine), prompts)
        their_seconds, their_records = seconds(reviser(theirs), prompts)
        ours_rates.append(len(prompts) / our_seconds)
        their_rates.append(len(prompts) / their_seconds)
        same.append(shares(our_records, their_records))
        print(f"run {run + 1}: {our_seconds:.1f} s against {their_seconds:.1f} s, first answers equal: {same[-1]:.0%}")
    write(
        "revise_rate",
        "prompts/s",
        ours_rates,
        their_rates,
        f"transformers {transformers.__version__} generate",
        model=asked.model,
        prompts=len(prompts),
        rounds=asked.rounds,
        tokens_a_reply=asked.tokens,
        batch=asked.batch,
        precision=str(loaded.model.dtype),
        first_answers_equal=min(same),
    )


if __name__ == "__main__":
    main()
