"""`steersman generate`: a file of prompts -> a file of answers."""

from typing import Annotated

import typer

from steersman.cli import flags
from steersman.cli.start import loading


def command(
    model: flags.Model,
    input: flags.Input,
    output: flags.Output,
    attributes: flags.Attributes = "",
    guidance: flags.GuidanceScale = 1.0,
    max_tokens: flags.MaxTokens = 512,
    temperature: flags.Temperature = 1.0,
    top_k: flags.TopK = 0,
    top_p: flags.TopP = 1.0,
    greedy: flags.Greedy = False,
    repetition_penalty: flags.RepetitionPenalty = 1.0,
    min_tokens: flags.MinTokens = 0,
    stop: flags.Stop = None,
    seed: flags.Seed = 0,
    unit: Annotated[int, typer.Option("--unit", min=1, help="Prompts batched and committed together.")] = 64,
    batch: flags.Batch = 32,
    precision: flags.Precision = "auto",
    url: flags.Url = None,
    concurrency: flags.Concurrency = 16,
    api_key: flags.ApiKey = None,
    limit: flags.Limit = None,
    on_error: flags.OnError = "stop",
    overwrite: flags.Overwrite = False,
) -> None:
    """Answer every prompt of a file.

    A line is `{"prompt": "..."}`, `{"messages": [...]}`, `{"turns": ["..."]}` or a conversation; it may bring
    `attributes` of its own. The output has the same lines with `answer`, `finish_reason` and all `attributes`.
    Interrupted, it continues when it is run again.

    ```
    steersman generate runs/steerlm/best --input prompts.jsonl --output answers.jsonl --attributes quality=4,humor=0
    ```
    """
    with loading():
        from steersman import jsonl
        from steersman.cli.output import wrote
        from steersman.cli.progress import progress_bar
        from steersman.generation.batch import complete_file
        from steersman.pipelines.opened import open_model
        from steersman.seams import Sampling

    jsonl.check_absent(output, overwrite)
    asked = flags.parse_attributes(attributes)
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        greedy=greedy,
        repetition_penalty=repetition_penalty,
        min_tokens=min_tokens,
        stop=tuple(stop or ()),
    )
    num_prompts = sum(1 for _ in jsonl.read_lines(input))
    opened = open_model(model, url, precision=precision, batch=batch, api_key=api_key, concurrency=concurrency)
    with progress_bar("generate", total=min(num_prompts, limit or num_prompts), unit="prompts") as advance:
        report = complete_file(
            input,
            output,
            opened.model,
            opened.template,
            opened.card,
            sampling,
            identity=opened.identity,
            attributes=asked,
            guidance=guidance,
            seed=seed,
            unit=unit,
            window=opened.window,
            forget=opened.forget,
            on_error=on_error,
            limit=limit,
            overwrite=overwrite,
            progress=advance,
        )
    cut = report.finish_reasons.get("length", 0)
    wrote(output, f"{report.num_prompts:,} answers, {report.num_tokens:,} tokens" + (f", {cut:,} cut off" * bool(cut)))
    if report.num_rejected:
        typer.echo(f"skipped: {report.num_rejected:,} lines, kept in {output}.rejects.jsonl")
