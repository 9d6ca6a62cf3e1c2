"""Serves a classifier with a LoRA of PEFT by transformers' pipeline, as "Web server inference" of its manual has it.

That is https://huggingface.co/docs/transformers/pipeline_webserver: starlette, a queue, and the pipeline called for one text
after the other. Nothing of hatemtl's is imported.
"""

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


def classifier(encoder: str, adapter: Path, labels: int, *, threads: int) -> Any:
    """The pipeline over an encoder of transformers with a LoRA of the shape that a saved run of PEFT's has."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    torch.set_num_threads(threads)
    like = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    shape = LoraConfig(
        r=like["r"], lora_alpha=like["lora_alpha"], target_modules=like["target_modules"], task_type="SEQ_CLS"
    )
    model: Any = get_peft_model(AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=labels), shape).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    return pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None, truncation=True, max_length=128)


def main() -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    encoder, adapter, labels, port, threads = sys.argv[1:]

    async def homepage(request: Request) -> JSONResponse:
        string = (await request.body()).decode("utf-8")
        response_q: asyncio.Queue[Any] = asyncio.Queue()
        await request.app.state.model_queue.put((string, response_q))
        return JSONResponse(await response_q.get())

    async def server_loop(q: "asyncio.Queue[Any]") -> None:
        pipe = classifier(encoder, Path(adapter), int(labels), threads=int(threads))
        print("ready", flush=True)
        while True:
            string, response_q = await q.get()
            await response_q.put(pipe(string))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        app.state.model_queue = asyncio.Queue()
        work = asyncio.create_task(server_loop(app.state.model_queue))
        yield
        work.cancel()

    app = Starlette(routes=[Route("/", homepage, methods=["POST"])], lifespan=lifespan)
    uvicorn.run(app, port=int(port), log_level="critical")


if __name__ == "__main__":
    main()
